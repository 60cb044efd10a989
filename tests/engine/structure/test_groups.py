"""Removal of units: what is refused, and what shrinks along with a weight."""

import pytest
import torch

from tests.engine.structure.nets import distance, net, run
from workers.engine.constraints import Mask, constrain, constraints_of
from workers.engine.errors import StepError
from workers.engine.quantization.grid import IntegerGrid
from workers.engine.shapes import example_inputs
from workers.engine.structure.groups import find_groups, remove_units, zero_units


def perceptron():
    return net(
        "(float[N, 5] x) => (float[N, 3] y) { a = Gemm(x, first, bias) r = Relu(a) y = Gemm(r, second) }",
        {"first": (5, 8), "bias": (8,), "second": (8, 3)},
    )


def every_other(count):
    return torch.arange(count) % 2 == 0


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        ({"third": every_other(8)}, "there is no group of units 'third'"),
        ({"first": torch.zeros(8, dtype=torch.bool)}, "keep at least one"),
        ({"first": every_other(7)}, "8 booleans"),
        ({"first": torch.ones(8)}, "8 booleans"),
        ({"second": every_other(3)}, "it is part of the output 'y'"),
    ],
)
def test_what_cannot_be_removed_is_refused(keep, reason):
    graph = perceptron()
    with pytest.raises(StepError, match=reason):
        remove_units(graph, keep)
    assert [group.units for group in find_groups(graph)] == [8, 3]


def test_keeping_all_changes_nothing():
    graph = perceptron()
    remove_units(graph, {"first": torch.ones(8, dtype=torch.bool), "second": torch.ones(3, dtype=torch.bool)})
    assert [group.units for group in find_groups(graph)] == [8, 3]


def test_slots_say_where_units_are_made_and_taken():
    group = find_groups(perceptron())[0]
    assert [(slot.name, slot.axis, slot.role) for slot in group.slots] == [
        ("weight", 0, "makes"),
        ("bias", 0, "makes"),
        ("weight", 1, "takes"),
    ]
    assert group.slots[0].positions.tolist() == [[unit] for unit in range(8)]


def test_constraints_shrink_with_their_weight():
    graph = perceptron()
    generator = torch.Generator().manual_seed(0)
    for layer in graph.layers():
        layer.constrain("weight", Mask(torch.rand(layer.weights["weight"].shape, generator=generator) > 0.5))
        layer.constrain("weight", IntegerGrid.fit(layer.weights["weight"], (0,)))
    pruned, zeroed = graph.copy(), graph.copy()
    remove_units(pruned, {"first": every_other(8)})
    zero_units(zeroed, {"first": every_other(8)})
    (x,) = example_inputs(graph, 4, 1)
    assert distance(run(pruned, [x]), run(zeroed, [x])) < 1e-6
    first, second = pruned.layers()
    assert [constraint.__class__ for constraint in first.constraints("weight")] == [Mask, IntegerGrid]
    mask, grid = constraints_of(first.module, "weight")
    assert mask.keep.shape == (4, 5)
    assert grid.scale.shape == (4, 1)
    assert constraints_of(second.module, "weight")[0].keep.shape == (3, 4)


def test_a_layer_that_is_called_twice_shrinks_once():
    graph = net(
        """(float[N, 5] x, float[N, 5] z) => (float[N, 3] y) {
        a = Gemm<transB=1>(x, w) b = Gemm<transB=1>(z, w) c = Add(a, b) y = Gemm<transB=1>(c, head)
        }""",
        {"w": (8, 5), "head": (3, 8)},
    )
    groups = find_groups(graph)
    assert groups[0].units == 8
    pruned, zeroed = graph.copy(), graph.copy()
    remove_units(pruned, {groups[0].name: every_other(8)})
    zero_units(zeroed, {groups[0].name: every_other(8)})
    inputs = example_inputs(graph, 4, 1)
    assert distance(run(pruned, inputs), run(zeroed, inputs)) < 1e-6


def test_pruned_weights_still_train():
    graph = perceptron()
    remove_units(graph, {"first": every_other(8)})
    (x,) = example_inputs(graph, 4, 1)
    graph(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in graph.module.parameters())


def test_constraints_of_other_forms_stay_as_they_are():
    """A constraint that keeps nothing of a weight's shape needs no method of its own."""
    module = torch.nn.Linear(3, 2)
    constrain(module, "weight", IntegerGrid.fit(module.weight, ()))
    grid = constraints_of(module, "weight")[0]
    grid.narrow(0, torch.tensor([1]))
    assert grid.scale.shape == (1, 1)
