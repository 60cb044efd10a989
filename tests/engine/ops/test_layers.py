"""Layers whose weights the graph computes answer, are written and cost as those whose weights the file stores."""

import numpy as np
import pytest
import torch
from onnx import helper

from tests.engine.onnx.running import assert_same, in_engine, model_of
from workers.engine.graph import Graph
from workers.engine.ops.fused_attention import attention
from workers.engine.readers.onnx import read_onnx
from workers.engine.shapes import stats


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


CASES = {
    "Conv": ((2, 4, 6, 6), (2, 8, 4, 4), [normal(8, 2, 3, 3), normal(8)], {"group": 2}),
    "ConvTranspose": ((2, 4, 3, 3), (2, 6, 7, 7), [normal(4, 3, 3, 3), normal(6)], {"group": 2, "strides": [2, 2]}),
    "Gemm": ((2, 5), (2, 3), [normal(5, 3), normal(3)], {}),
    "MatMul": ((2, 4, 5), (2, 4, 3), [normal(5, 3)], {}),
    "BatchNormalization": ((2, 4, 5), (2, 4, 5), [normal(4), normal(4), normal(4), abs(normal(4))], {"epsilon": 0.01}),
    "LayerNormalization": ((2, 4, 5), (2, 4, 5), [normal(4, 5), normal(4, 5)], {"axis": -2, "epsilon": 0.01}),
    "InstanceNormalization": ((2, 4, 5), (2, 4, 5), [normal(4), normal(4)], {"epsilon": 0.01}),
    "PRelu": ((2, 4, 5), (2, 4, 5), [normal(4, 1)], {}),
    "LSTM": ((3, 2, 4), (3, 1, 2, 5), [normal(1, 20, 4), normal(1, 20, 5), normal(1, 40)], {"hidden_size": 5}),
    "GRU": ((3, 2, 4), (3, 1, 2, 5), [normal(1, 15, 4), normal(1, 15, 5), normal(1, 30)], {"hidden_size": 5}),
}


def layer_model(op: str, *, computed: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """Weights twice what is stored, or what is fed plus itself."""
    shape, result, weights, attributes = CASES[op]
    names = [f"w{index}" for index in range(len(weights))]
    nodes = [helper.make_node(op, ["x", *names], ["y"], **attributes)]
    feeds, inputs = {"x": normal(*shape)}, {"x": shape}
    stored = dict(zip(names, weights, strict=True))
    if computed:
        fed = {f"half_{name}": array / 2 for name, array in stored.items()}
        nodes = [helper.make_node("Add", [half, half], [name]) for half, name in zip(fed, names, strict=True)] + nodes
        feeds, inputs, stored = feeds | fed, inputs | {name: array.shape for name, array in fed.items()}, {}
    return model_of(nodes, inputs, {"y": result}, stored), feeds


@pytest.mark.parametrize("op", CASES)
def test_computed_weights(op: str) -> None:
    model, feeds = layer_model(op, computed=True)
    graph = assert_same(model, feeds)
    assert not [layer for layer in graph.layers() if layer.weights]
    stored, fewer = layer_model(op, computed=False)
    np.testing.assert_allclose(in_engine(graph, feeds)[0], in_engine(read_onnx(stored), fewer)[0], atol=1e-4)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"])
def test_they_cost_as_much(op: str) -> None:
    computed, stored = (macs(read_onnx(layer_model(op, computed=way)[0])) for way in (True, False))
    assert computed == stored > 0


def macs(graph: Graph) -> int | None:
    return stats(graph).macs


@pytest.mark.parametrize(
    ("equation", "shapes", "count"),
    [
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)], 3 * 4 * 6 * 5),
        ("...ij,jk->...ik", [(2, 4, 5), (5, 7)], 4 * 5 * 7),
        ("bij->bji", [(2, 4, 5)], 0),
    ],
)
def test_products_by_an_equation_are_counted(equation: str, shapes: list[tuple[int, ...]], count: int) -> None:
    names = [f"x{index}" for index in range(len(shapes))]
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    inputs = {
        name: ["batch" if name == "x0" or len(shape) > 2 else shape[0], *shape[1:]]
        for name, shape in zip(names, shapes, strict=True)
    }
    assert macs(read_onnx(model_of([node], inputs, {"y": ["batch", *[None] * 2]}))) == count


def test_a_query_that_may_look_nowhere_gets_nothing_and_gradients_stay_numbers() -> None:
    query, key, value = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    result, *_ = attention(query, key, value, mask)
    result.sum().backward()
    assert bool((result[:, :, 1] == 0).all())
    assert bool(torch.isfinite(query.grad).all())
    inner = [0, 2]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)[:, :, inner]
    torch.testing.assert_close(result[:, :, inner], expected)


def test_the_mean_of_a_layer_norm_is_an_output_too() -> None:
    node = helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["y", "mean", "inverse"])
    weights = {"scale": normal(5), "bias": normal(5)}
    model = model_of([node], {"x": [2, 5]}, {"y": [2, 5], "mean": [2, 1], "inverse": [2, 1]}, weights)
    assert_same(model, {"x": normal(2, 5)})
