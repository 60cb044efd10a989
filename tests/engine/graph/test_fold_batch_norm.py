"""A folded batch norm: one layer less, the same outputs."""

import pytest
import torch
from torch import nn

from modelpress.models import TensorSpec
from workers.engine.builder import GraphBuilder
from workers.engine.constraints import Mask, constrain
from workers.engine.graph import Graph
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.ops.linear import Linear
from workers.engine.ops.normalization import BatchNorm
from workers.engine.transforms.fold_batch_norm import fold_batch_norm

WINDOW = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1)}


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def net(layer: nn.Module, channels: int, shape: tuple[int | str, ...], *, used_twice: bool = False) -> Graph:
    graph = GraphBuilder()
    spec = TensorSpec(name="x", dtype="float32", shape=shape)
    x = graph.module("layer", layer, graph.input(spec))
    spread = torch.rand(channels) + 0.5
    norm = BatchNorm(
        torch.randn(channels), torch.randn(channels), torch.randn(channels), spread, eps=1e-3, momentum=0.1
    )
    y = graph.call(torch.relu, graph.module("norm", norm, x))
    outputs = [(spec, y), (spec, x)] if used_twice else [(spec, y)]
    return graph.finish(outputs, opset=17)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", ["conv", "grouped", "transposed", "linear"])
def test_folding_changes_no_output(kind: str, biased: bool) -> None:
    torch.manual_seed(0)
    bias = weight(6) if biased else None
    image, x = ("batch", 4, 8, 8), torch.randn(3, 4, 8, 8)
    match kind:
        case "conv":
            graph = net(Conv(weight(6, 4, 3, 3), bias, **WINDOW), 6, image)
        case "grouped":
            graph = net(Conv(weight(6, 2, 3, 3), bias, groups=2, **WINDOW), 6, image)
        case "transposed":
            layer = ConvTranspose(weight(4, 3, 3, 3), bias, output_padding=(0, 0), groups=2, **WINDOW)
            graph = net(layer, 6, image)
        case _:
            graph, x = net(Linear(weight(6, 4), bias), 6, ("batch", 4)), torch.randn(3, 4)
    before = graph(x)[0]
    assert fold_batch_norm(graph) == 1
    assert [layer.op.name for layer in graph.layers()] in (["Conv"], ["ConvTranspose"], ["Gemm"])
    torch.testing.assert_close(graph(x)[0], before, rtol=1e-5, atol=1e-5)
    assert len(list(graph.module.parameters())) == 2


def test_what_something_else_uses_is_left_alone() -> None:
    assert fold_batch_norm(net(Linear(weight(6, 4), None), 6, ("batch", 4), used_twice=True)) == 0


def test_a_constrained_weight_is_left_alone() -> None:
    graph = net(Linear(weight(6, 4), None), 6, ("batch", 4))
    next(graph.layers()).constrain("weight", Mask(torch.rand(6, 4) > 0.5))
    assert fold_batch_norm(graph) == 0


def test_masked_weights_that_two_layers_share_keep_their_norms() -> None:
    torch.manual_seed(0)
    graph = GraphBuilder()
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 6, 8, 8))
    shared, value = weight(6, 6, 3, 3), graph.input(spec)
    for _ in range(2):
        layer = Conv(shared, None, **WINDOW)
        constrain(layer, "weight", Mask(torch.rand(6, 6, 3, 3) > 0.5))
        spread = torch.rand(6) + 0.5
        norm = BatchNorm(torch.randn(6), torch.randn(6), torch.randn(6), spread, eps=1e-3, momentum=0.1)
        value = graph.module("norm", norm, graph.module("layer", layer, value))
    finished, x = graph.finish([(spec, value)], opset=17), torch.randn(3, 6, 8, 8)
    before = finished(x)[0]
    fold_batch_norm(finished)
    torch.testing.assert_close(finished(x)[0], before, rtol=1e-5, atol=1e-5)


def affine(layer: nn.Module, shape: tuple[int | str, ...], *constants: torch.Tensor) -> Graph:
    """A layer whose result is multiplied with the one constant and to which the other is added."""
    graph = GraphBuilder()
    spec = TensorSpec(name="x", dtype="float32", shape=shape)
    scaled = graph.call(torch.mul, graph.module("layer", layer, graph.input(spec)), constants[0])
    return graph.finish([(spec, graph.call(torch.add, constants[1], scaled))], opset=17)


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1)])
def test_factors_and_summands_of_channels_fold_too(shape: tuple[int, ...]) -> None:
    graph = affine(Conv(weight(6, 4, 3, 3), None, **WINDOW), ("batch", 4, 8, 8), torch.randn(shape), torch.randn(shape))
    x = torch.randn(3, 4, 8, 8)
    before = graph(x)[0]
    assert fold_batch_norm(graph) == 1
    assert [node.op for node in graph.module.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(graph(x)[0], before, rtol=1e-5, atol=1e-5)


def test_factors_of_a_linear_layer_fold_too() -> None:
    graph = affine(Linear(weight(6, 4), weight(6)), ("batch", 4), torch.randn(6), torch.randn(6))
    x = torch.randn(3, 4)
    before = graph(x)[0]
    assert fold_batch_norm(graph) == 1
    torch.testing.assert_close(graph(x)[0], before, rtol=1e-5, atol=1e-5)


def test_factors_along_another_dimension_stay() -> None:
    layer = Conv(weight(6, 4, 3, 3), None, **WINDOW)
    assert fold_batch_norm(affine(layer, ("batch", 4, 6, 6), torch.randn(1, 6), torch.randn(1, 6))) == 0
