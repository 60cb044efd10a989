import copy

import onnx
import pytest
import torch

from tests.engine.interface.running import File, colours, tokens
from tests.engine.steps.nets import KINDS, Examples, accuracy, apply, context_for, data_of, outputs, trained
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.inspection import signature
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.transforms.clipping import Bounded
from workers.engine.writers.onnx import write_onnx


def clipped(kind, **options):
    context = context_for(kind)
    return apply(trained(kind), context, {"step": "activation_clipping", **options}), context


def bounds_of(graph):
    """Of every clip in the file, by value: (low, high)."""
    model = onnx.load_from_string(write_onnx(graph))
    stored = {
        tensor.name: float(onnx.numpy_helper.to_array(tensor)) for tensor in model.graph.initializer if not tensor.dims
    }
    return [tuple(stored.get(name) for name in node.input[1:3]) for node in model.graph.node if node.op_type == "Clip"]


def uneven(examples):
    """Images of which one pixel in a thousand is far out."""
    x = torch.randn(examples, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 1e-3, 40 * x, x)


@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_bounds_cut_off_what_is_rare_and_the_answers_stay(kind):
    graph, context = clipped(kind)
    assert len(bounds_of(graph)) == context.figures["bounded"] > 0
    assert accuracy(graph, kind) == pytest.approx(accuracy(trained(kind), kind), abs=0.02)
    x = data_of(kind, "test").inputs[:64]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs(write_onnx(graph), x)), graph(x)[0], rtol=1e-4, atol=1e-4)


def test_a_relu_and_its_bound_are_one_node():
    graph, _ = clipped("convolutional", bounds="given", high=2.0)
    assert bounds_of(graph) == [(0.0, 2.0)] * 3
    assert "Relu" not in File(graph).ops


def test_given_bounds_on_the_outputs():
    graph, _ = clipped("recurrent", bounds="given", low=-1.0, high=2.0, where="outputs")
    x = data_of("recurrent", "test").inputs
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], trained("recurrent")(x)[0].clamp(-1, 2))
    assert bounds_of(graph) == [(-1.0, 2.0)]


def test_only_the_selected_layers():
    graph, context = clipped("convolutional", layers={"include": ["conv1"]})
    assert len(bounds_of(graph)) == 1
    assert "1 results are bounded: conv1: " in context.notes[-1]


def test_rare_values_no_longer_make_the_grids_of_8_bits_coarse():
    graph, data = colours(), Examples(uneven(256))
    clipping = {"step": "activation_clipping", "percentile": 99}
    quantizing = {"step": "static_quantization", "ranges": "min_max", "keep_float": 1.0}
    steps = {}
    for name, recipe in (("without", [quantizing]), ("with", [clipping, quantizing])):
        context = context_for("convolutional", train=data, teacher=graph, original=graph)
        quantized = apply(graph.copy(), context, *recipe)
        steps[name] = [float(m.scale) for m in quantized.module.modules() if isinstance(m, FakeQuantize)]
    assert min(steps["with"]) < 0.5 * min(steps["without"])


def test_learned_bounds_are_trained_and_become_constants():
    graph, context = clipped("convolutional", bounds="learned", bits=3, epochs=4, percentile=100, decay=0.01)
    assert not any(isinstance(module, Bounded) for module in graph.module.modules())
    reached, _ = clipped("convolutional", percentile=100)
    learned, calibrated = bounds_of(graph), bounds_of(reached)
    assert len(learned) == len(calibrated) == 3
    assert learned != calibrated
    assert all(high > 0 for _, high in learned)
    assert context.figures["updates"] > 0
    assert accuracy(graph, "convolutional") > 0.9


def test_a_bound_gets_the_gradient_of_what_it_cuts_off_and_of_its_decay():
    leaf = Bounded(-1.0, 2.0, bits=8, decay=0.1)
    x = torch.tensor([-3.0, 0.5, 5.0, 7.0], requires_grad=True)
    leaf(x).sum().backward()
    assert leaf.high.grad.item() == pytest.approx(2 + 2 * 0.1 * 2.0)
    assert leaf.low.grad.item() == pytest.approx(1 - 2 * 0.1 * 1.0)
    assert x.grad.tolist() == [0.0, 1.0, 0.0, 0.0]
    other = copy.deepcopy(leaf)
    assert other.numbers() == leaf.numbers() == (-1.0, 2.0)


def test_values_between_learned_bounds_lie_on_their_grid():
    leaf = Bounded(0.0, 3.0, bits=2, decay=0.0)
    assert leaf(torch.tensor([-1.0, 0.4, 0.6, 1.2, 2.9, 9.0])).tolist() == [0.0, 0.0, 1.0, 1.0, 3.0, 3.0]


def test_tighter_bounds_replace_and_wider_ones_are_left_out():
    graph, _ = clipped("convolutional", bounds="given", high=1.0)
    given = {"step": "activation_clipping", "bounds": "given"}
    with pytest.raises(StepError, match="bounded already, 0 to 1"):
        apply(graph.copy(), context_for("convolutional"), given | {"high": 2.0})
    assert bounds_of(apply(graph, context_for("convolutional"), given | {"high": 0.5})) == [(0.0, 0.5)] * 3


def test_bounds_that_nothing_reaches_are_warned_of():
    _, context = clipped("recurrent", bounds="given", high=6.0)
    assert context.warnings == ["on the data nothing lies beyond these bounds: they changed no answer"]


def test_tables_and_outputs_say_why_they_are_left_alone():
    graph = tokens()
    context = context_for("recurrent", train=SyntheticBatches(signature(graph), 0, 9), teacher=graph, original=graph)
    apply(graph.copy(), context, {"step": "activation_clipping"})
    assert context.untouched["words"] == "its results are rows of a table"
    assert context.untouched["head"].startswith("its result is an output of the model")
    assert any("made-up inputs" in note for note in context.notes)


def test_pruning_goes_through_bounds():
    graph, _ = clipped("convolutional")
    pruned = apply(graph, context_for("convolutional"), {"step": "channel_pruning", "ratio": 0.5})
    assert bounds_of(pruned)
    assert sum(p.numel() for p in pruned.module.parameters()) < 0.7 * sum(
        p.numel() for p in trained("convolutional").module.parameters()
    )
