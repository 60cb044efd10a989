"""Small ONNX files with the tensors that a test asks for."""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def holding(*arrays: np.ndarray) -> bytes:
    """An ONNX file with these initializers."""
    return onnx_file([numpy_helper.from_array(array, f"layer.{index}.weight") for index, array in enumerate(arrays)])


def onnx_file(initializers: list[onnx.TensorProto], nodes: list[onnx.NodeProto] | None = None) -> bytes:
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", ["x"], ["y"])],
        "main",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])],
        initializers,
    )
    return bytes(helper.make_model(graph).SerializeToString(deterministic=True))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)


def sparse(weight: np.ndarray, zeros: float = 0.9, values: int = 16) -> np.ndarray:
    """The largest weights, each moved to the nearest of a few values."""
    kept = np.abs(weight) > np.quantile(np.abs(weight), zeros)
    steps = np.quantile(weight[kept], np.linspace(0, 1, values)).astype(np.float32)
    out = np.zeros_like(weight)
    out[kept] = steps[np.abs(weight[kept][:, None] - steps).argmin(axis=1)]
    return out


def crossed() -> np.ndarray:
    """Rows and columns that differ in how sparse they are, as in pruned layers of images."""
    dice = np.random.default_rng(0)
    dense = np.linspace(0.01, 0.9, 80)[:, None] * np.linspace(0.01, 0.9, 90)
    return np.where(dice.random((80, 90)) < dense, normal(8)[dice.integers(0, 8, (80, 90))], 0).astype(np.float32)
