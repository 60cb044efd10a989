"""Any legal recipe ends in a file that runs, answers as the graph does, and still holds what each step has fixed."""

import itertools
import math
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from modelpress.steps import STEPS, allowed_before, check_order
from tests.engine.steps.nets import KINDS, Examples, apply, context_for, data_of, trained
from workers.engine.constraints import Mask
from workers.engine.errors import StepError
from workers.engine.inspection import TOLERANCE, differences
from workers.engine.runtime import arrays, open_session
from workers.engine.shapes import example_inputs
from workers.engine.writers.onnx import write_onnx

EXAMPLES = 160
FEW = 9
"""Bits of a stored value, its share of a block's scale included, where values are few."""
QUICK = {"epochs": 1, "batch_size": 40, "rounds": 2}
OPTIONS = {"static_quantization": {"keep_float": 1.0}, "input_compression": {"scale": 0.03, "mean": 4.0}}


@st.composite
def recipes(draw):
    """Up to four steps, each of which may follow all those before it."""
    recipe = [draw(st.sampled_from(list(STEPS)))]
    for _ in range(draw(st.integers(0, 3))):
        legal = [name for name, step in STEPS.items() if set(recipe) <= set(allowed_before(step))]
        if not legal:
            break
        recipe.append(draw(st.sampled_from(legal)))
    return recipe


def options_of(name):
    fields = STEPS[name].model_fields
    return {"step": name} | {key: value for key, value in QUICK.items() if key in fields} | OPTIONS.get(name, {})


@cache
def context(kind):
    data = data_of(kind)
    return context_for(kind, train=Examples(data.inputs[:EXAMPLES], data.labels[:EXAMPLES]))


def fixed(graph):
    """What is fixed of every weight, by layer and parameter: the kinds of its constraints, and how many values."""
    return {
        (layer.name, name): ({type(constraint) for constraint in layer.constraints(name)}, levels(layer, name))
        for layer in graph.layers()
        for name in layer.weights
    }


def levels(layer, name):
    """A power of two that the different values of any one channel do not exceed; None where they are many."""
    if min((constraint.bits for constraint in layer.constraints(name)), default=32) > FEW:
        return None
    weight = layer.weights[name].detach()
    channels = weight.unbind(layer.channel_axis(name)) if weight.ndim > 1 else [weight]
    return 2 ** math.ceil(math.log2(max(len(channel.unique()) for channel in channels)))


def check_kept(graph, before):
    """What was fixed is still there, and holds."""
    for layer in graph.layers():
        for name, weight in layer.weights.items():
            chain = layer.constraints(name)
            kinds, most = before.get((layer.name, name), (set(), None))
            assert kinds <= {type(constraint) for constraint in chain}, layer.name
            for constraint in chain:
                if isinstance(constraint, Mask):
                    assert not weight[~constraint.keep].any(), f"{layer.name}: zeros are gone"
            stored = [constraint for constraint in chain if constraint.bits < 32]
            if stored:
                torch.testing.assert_close(stored[-1](weight), weight, msg=f"{layer.name} is not what is stored")
                assert most is None or levels(layer, name) <= most, f"{layer.name} has more values"


@pytest.mark.slow
@given(recipe=recipes(), kind=st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_each_step_fixed_is_in_the_file(recipe, kind):
    check_order([STEPS[name](**options_of(name)) for name in recipe])
    graph, found = trained(kind), {}
    for name in recipe:
        before = graph.copy()
        try:
            graph = apply(graph, context(kind), options_of(name))
        except StepError as reason:  # says that there is nothing for it to do here: the others go on without it
            note(f"{name} on {kind}: {reason}")
            event(f"{name} does not apply")
            graph = before
            continue
        event(name)
        check_kept(graph, found)
        found = fixed(graph)

    graph.module.eval()
    session = open_session(write_onnx(graph), 1, exact=True)
    inputs = example_inputs(graph, 7, 10)
    for output, error in differences(graph, inputs, session.run(arrays(inputs))).items():
        assert error <= 2 * TOLERANCE, f"{output} differs by {error:.2%}"


def test_what_cannot_follow_says_why():
    for later in STEPS.values():
        for name in STEPS.keys() - set(allowed_before(later)):
            with pytest.raises(ValueError, match=f"cannot come after {name}: .+|cannot come after {name}, which .+"):
                check_order([STEPS[name](**options_of(name)), later(**options_of(later.model_fields["step"].default))])


def test_steps_that_cannot_be_in_one_recipe_have_a_reason_of_their_own():
    for (name, one), (other, two) in itertools.combinations(STEPS.items(), 2):
        if name not in allowed_before(two) and other not in allowed_before(one):
            assert name in two.never_after or other in one.never_after, (name, other)
