"""How readers build a graph: our names inside, the user's outside, constants computed on the way."""

import torch
from torch import fx

from modelpress.models import TensorSpec
from workers.engine.builder import GraphBuilder
from workers.engine.ops.constants import number_range
from workers.engine.ops.linear import Linear
from workers.engine.ops.shapes import transpose, unsqueeze

X = TensorSpec(name="import os", dtype="float32", shape=("batch", 4))


def layer(graph: GraphBuilder) -> Linear:
    return Linear(graph.parameter(torch.randn(4, 4)), None)


def test_names_of_users_stay_out_of_the_graph() -> None:
    graph = GraphBuilder()
    x = graph.input(X)
    y = graph.module("forward", layer(graph), x)
    z = graph.module("forward", layer(graph), y)
    built = graph.finish([(X.model_copy(update={"name": "return"}), z)], opset=17)
    assert [node.name for node in built.module.graph.nodes] == ["in_0", "linear_0", "linear_1", "output"]
    assert [found.name for found in built.layers()] == ["forward", "forward_2"]
    assert not built.module.training


def test_small_constants_are_computed_and_weights_are_not() -> None:
    graph = GraphBuilder()
    small, large = torch.arange(4.0), torch.randn(100, 100)
    assert isinstance(graph.call(torch.add, small, small), torch.Tensor)
    assert isinstance(graph.call(torch.add, large, large), fx.Node)
    turned = graph.call(transpose, graph.name(large, "w"), perm=(1, 0))
    assert isinstance(turned, torch.Tensor)
    assert graph.transposed_parameter(turned) is graph.parameter(large)
    assert isinstance(graph.call(unsqueeze, small, (0,)), torch.Tensor)


def test_what_can_grow_is_not_computed_while_reading() -> None:
    graph = GraphBuilder()
    start, end, step = (graph.keep(torch.tensor(number)) for number in (0, 1 << 50, 1))
    assert isinstance(graph.call(number_range, start, end, step), fx.Node)


def test_constants_train_where_they_can_be_weights() -> None:
    graph = GraphBuilder()
    x = graph.input(X)
    for value in (torch.ones(4), torch.tensor(2.0), torch.full((4,), -torch.inf), torch.tensor([1, 2, 3, 4])):
        x = graph.call(torch.add, x, value)
    built = graph.finish([(X, x)], opset=17)
    assert [name for name, _ in built.module.named_parameters()] == ["constant_0"]
    assert [name for name, _ in built.module.named_buffers()] == ["constant_1", "constant_2", "constant_3"]


def test_nothing_that_no_output_needs_is_kept() -> None:
    graph = GraphBuilder()
    x = graph.input(X)
    graph.module("unused", layer(graph), graph.call(torch.relu, x))
    built = graph.finish([(X, graph.call(torch.neg, x))], opset=17)
    assert [node.op for node in built.module.graph.nodes] == ["placeholder", "call_function", "output"]
    assert not list(built.module.parameters())
