"""Weights that a file stores in few bits are read as the floats that they stand for."""

import numpy as np
import pytest
from ml_dtypes import int4, uint4
from onnx import TensorProto, helper, numpy_helper

from tests.engine.onnx.running import in_engine, in_runtime
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

NORMAL = np.random.default_rng(0)


def quantized_model(values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, **attributes: int) -> bytes:
    """x times the weights behind a `DequantizeLinear`."""
    stored = {"values": values, "scale": scale} | ({} if zero_point is None else {"zero_point": zero_point})
    nodes = [
        helper.make_node("DequantizeLinear", list(stored), ["weight"], **attributes),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", values.shape[0]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", values.shape[1]])]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("kind", [int4, uint4])
@pytest.mark.parametrize(("block", "axis"), [(4, 0), (0, 1)])
def test_four_bit_weights(kind: type, block: int, axis: int) -> None:
    values = NORMAL.integers(0 if kind is uint4 else -8, 8, (10, 3)).astype(kind)
    places = (3, 3) if block else (3,)
    scale = NORMAL.uniform(0.1, 1, places).astype(np.float32)
    zero_point = NORMAL.integers(0, 4, places).astype(kind)
    model = quantized_model(values, scale, zero_point, axis=axis, **({"block_size": block} if block else {}))
    feeds = {"x": NORMAL.normal(size=(2, 10)).astype(np.float32)}
    graph = read_onnx(model)
    assert [layer.name for layer in graph.layers()] == ["values"]
    assert [weight.shape for layer in graph.layers() for weight in layer.weights.values()] == [(3, 10)]
    scales, zero_points = (
        array.repeat(block, 0)[:10] if block else array for array in (scale, zero_point.astype(np.float32))
    )
    expected = feeds["x"] @ ((values.astype(np.float32) - zero_points) * scales)
    for answer in (*in_engine(graph, feeds), *in_runtime(write_onnx(graph), feeds)):
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4)
