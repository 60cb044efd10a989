import numpy as np
import pytest
import torch
from onnx import helper

from tests.engine.onnx.running import in_engine, in_runtime, model_of
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.standard_normal((5, 4), dtype=np.float32)
X = GENERATOR.standard_normal((2, 3, 5), dtype=np.float32)


def product_and(bias, *more, swap=False):
    added = ["b", "product"] if swap else ["product", "b"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Add", added, ["sum"]), *more]
    last = more[-1].output[0] if more else "sum"
    return model_of(nodes, {"x": ["n", 3, 5]}, {last: ["n", 3, 4]}, {"w": WEIGHT, "b": bias})


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 4)])
def test_a_constant_behind_a_product_becomes_its_bias(shape, swap):
    model = product_and(GENERATOR.standard_normal(shape, dtype=np.float32), swap=swap)
    graph = read_onnx(model)
    (layer,) = graph.layers()
    assert layer.module.bias.shape == (4,)
    assert torch.add not in {node.target for node in graph.module.graph.nodes}
    (expected,) = in_runtime(model, {"x": X})
    np.testing.assert_allclose(in_engine(graph, {"x": X})[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(in_runtime(write_onnx(graph), {"x": X})[0], expected, rtol=1e-5, atol=1e-6)


def test_what_is_no_bias_is_left_alone():
    by_row = product_and(GENERATOR.standard_normal((3, 4), dtype=np.float32))
    read_twice = product_and(
        GENERATOR.standard_normal(4, dtype=np.float32), helper.make_node("Mul", ["product", "sum"], ["y"])
    )
    for model in (by_row, read_twice):
        graph = read_onnx(model)
        assert torch.add in {node.target for node in graph.module.graph.nodes}
        np.testing.assert_allclose(in_engine(graph, {"x": X})[0], in_runtime(model, {"x": X})[0], rtol=1e-5, atol=1e-6)
