"""Small models made by hand, and the two ways to run them: ONNX Runtime on the bytes, and the engine on the graph."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
import torch
from ml_dtypes import bfloat16
from onnx import NodeProto, TensorProto, helper, numpy_helper

from workers.engine.graph import Graph
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

Arrays = Mapping[str, np.ndarray]
FLOAT = TensorProto.FLOAT


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Mapping[str, Sequence[int | str | None]],
    weights: Arrays | None = None,
    *,
    opset: int = 17,
    kinds: Mapping[str, int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a model. `kinds` are the element types of inputs and outputs that are not float."""
    kinds = kinds or {}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kinds.get(name, FLOAT), shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kinds.get(name, FLOAT), shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, dict(metadata or {}))
    return model.SerializeToString()


def in_runtime(model: bytes, feeds: Arrays) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # products in float32
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, dict(feeds))


def in_engine(graph: Graph, feeds: Arrays) -> list[np.ndarray]:
    with torch.no_grad():
        return [to_array(tensor) for tensor in graph(*(to_tensor(feeds[spec.name]) for spec in graph.inputs))]


def to_tensor(array: np.ndarray) -> torch.Tensor:
    array = np.array(array)
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype is torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(bfloat16)
    return tensor.detach().numpy()


def assert_same(model: bytes, feeds: Arrays, *, tolerance: float = 1e-4) -> Graph:
    """The engine answers as ONNX Runtime does, and the file that it writes answers as the file that it read."""
    graph = read_onnx(model)
    expected = in_runtime(model, feeds)
    for ours, theirs in zip(in_engine(graph, feeds), expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(in_runtime(write_onnx(graph), feeds), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    return graph
