"""What each importance finds worth keeping, and how many units a share leaves."""

from pathlib import Path
from typing import get_args

import pytest
import torch

import workers.engine.importance
from modelpress.steps.channel_pruning import Importance
from tests.engine.steps.nets import context_for, trained
from workers.engine.importance import IMPORTANCES, importance_of
from workers.engine.importance.ranking import Candidate, least_important, step_of, uniform
from workers.engine.importance.units import Units
from workers.engine.ops.normalization import BatchNorm
from workers.engine.structure.groups import Group, Slot, find_groups

NAMES = [name for name in get_args(Importance) if name != "auto"]
SHARED = {"__init__", "ranking", "units"}


def group_of(graph, name):
    return next(group for group in find_groups(graph) if group.name == name)


def scores(graph, importance, name="conv1", context=None):
    units = Units(group_of(graph, name), graph)
    (found,) = importance_of(importance).score([units], context or context_for("convolutional"))
    return found


def group(name, units, width=1):
    positions = torch.arange(units * width).view(units, width)
    return Group(name, (name,), "channels", units, (Slot(name, "weight", 0, positions, "makes"),))


def test_every_name_has_its_module_and_every_module_its_name():
    folder = Path(workers.engine.importance.__file__).parent
    assert {file.stem for file in folder.glob("*.py")} - SHARED == set(NAMES)
    for name in NAMES:
        assert importance_of(name) is IMPORTANCES[name]
        assert IMPORTANCES[name].score.__module__ == f"workers.engine.importance.{name}"


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_one_number_a_unit_and_the_same_every_time(name):
    graph = trained("convolutional")
    found = scores(graph, name)
    assert found.shape == (16,)
    assert found.isfinite().all()
    context = context_for("convolutional", train="unlabelled")
    torch.testing.assert_close(
        scores(graph, name, context=context), scores(graph, name, context=context), rtol=1e-4, atol=1e-6
    )


def test_l1_and_l2_add_up_what_makes_and_what_takes_a_unit():
    graph = trained("convolutional")
    layers = {layer.name: layer.module.weight for layer in graph.layers()}
    both = torch.cat([layers["conv1"].flatten(1), layers["conv2"].transpose(0, 1).flatten(1)], 1)
    torch.testing.assert_close(scores(graph, "l1"), both.abs().sum(1))
    torch.testing.assert_close(scores(graph, "l2"), both.norm(dim=1))


def test_the_unit_nearest_to_all_others_is_worth_least_to_the_geometric_median():
    graph = trained("convolutional")
    weight = next(layer for layer in graph.layers() if layer.name == "conv1").module.weight
    weight.data[5] = weight.data.mean(0)
    assert int(scores(graph, "geometric_median").argmin()) == 5


def test_batch_norm_scale_is_the_scale_of_the_batch_norm():
    graph = trained("convolutional")
    _, norm = (module for module in graph.module.modules() if isinstance(module, BatchNorm))
    torch.testing.assert_close(scores(graph, "batch_norm_scale"), norm.weight.abs())


@pytest.mark.parametrize("train", ["labelled", "unlabelled"])
def test_taylor_sees_what_a_units_absence_does_to_the_answers(train):
    graph = trained("convolutional")
    weight = next(layer for layer in graph.layers() if layer.name == "conv2").module.weight
    weight.data[:, 3] *= 1e-3
    weight.data[:, 7] *= 20
    found = scores(graph, "taylor", context=context_for("convolutional", train=train))
    assert int(found.argmin()) == 3
    assert int(found.argmax()) == 7


@pytest.mark.parametrize(
    ("units", "width", "round_to", "step"),
    [(64, 1, 8, 8), (12, 32, 8, 1), (12, 4, 8, 2), (6, 1, 8, 1), (8, 1, 8, 8), (64, 1, 1, 1)],
)
def test_widths_shrink_in_steps_that_keep_them_multiples(units, width, round_to, step):
    assert step_of(group("x", units, width), round_to) == step


def test_the_same_share_of_every_group_or_the_least_of_all():
    small, large = torch.arange(1.0, 11), torch.arange(1.0, 11) * 10
    both = [Candidate(group("a", 10), small, 1), Candidate(group("b", 10), large, 1)]
    assert {name: int(keep.sum()) for name, keep in uniform(both, 0.3).items()} == {"a": 7, "b": 7}
    assert uniform(both, 0.3)["a"].tolist() == [False] * 3 + [True] * 7
    raw = least_important(both, 0.5, comparable=True)
    assert {name: int(keep.sum()) for name, keep in raw.items()} == {"a": 1, "b": 9}
    normalised = least_important(both, 0.5, comparable=False)
    assert {name: int(keep.sum()) for name, keep in normalised.items()} == {"a": 5, "b": 5}


def test_a_share_of_a_groups_own_is_kept_to_in_both_scopes():
    own = Candidate(group("a", 10), torch.rand(10), 1, fixed=0.2)
    other = Candidate(group("b", 10), torch.rand(10), 1)
    for kept in (uniform([own, other], 0.5), least_important([own, other], 0.5, comparable=True)):
        assert {name: int(keep.sum()) for name, keep in kept.items()} == {"a": 8, "b": 5}
