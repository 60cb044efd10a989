"""Ops that were something else before, read from the files of their time, against ONNX Runtime."""

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from tests.engine.onnx.running import assert_same, model_of

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 4, 6, 6)).astype(np.float32)


def make(op: str, *inputs: str, **attributes) -> NodeProto:
    return helper.make_node(op, ["x", *inputs], ["y"], **attributes)


@pytest.mark.parametrize(
    ("node", "opset", "weights", "shape"),
    [
        (make("GroupNormalization", "s", "b", num_groups=2), 18, {"s": [1.5, 0.5], "b": [0.1, 0.2]}, X.shape),
        (make("DFT", axis=2), 17, {}, (2, 4, 6, 6, 2)),
        (make("Clip", min=-0.5, max=0.5), 10, {}, X.shape),
        (make("Pad", pads=[0, 0, 1, 0, 0, 0, 0, 1], value=0.5), 10, {}, (2, 4, 7, 7)),
        (make("Slice", starts=[1], ends=[3], axes=[1]), 9, {}, (2, 2, 6, 6)),
        (make("Upsample", mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]), 8, {}, (2, 4, 12, 12)),
        (make("Softmax", axis=1), 11, {}, X.shape),
        (make("Dropout", ratio=0.3), 10, {}, X.shape),
        (make("ReduceMean", axes=[2, 3]), 13, {}, (2, 4, 1, 1)),
        (make("AveragePool", kernel_shape=[2, 2]), 10, {}, (2, 4, 5, 5)),
    ],
    ids=lambda value: value.op_type if isinstance(value, NodeProto) else None,
)
def test_nodes_of_their_time(node: NodeProto, opset: int, weights: dict[str, list[float]], shape: tuple) -> None:
    x = X[..., None] if node.op_type == "DFT" else X
    arrays = {name: np.array(values, np.float32) for name, values in weights.items()}
    assert_same(model_of([node], {"x": x.shape}, {"y": shape}, arrays, opset=opset), {"x": x}, tolerance=1e-3)


@pytest.mark.parametrize("op", ["Scatter", "ScatterElements"])
def test_scatter_and_its_newer_name(op: str) -> None:
    places, updates = np.array([[[[1]]]], np.int64), np.array([[[[9.0]]]], np.float32)
    opset = 10 if op == "Scatter" else 13
    model = model_of(
        [make(op, "i", "u", axis=1)], {"x": X.shape}, {"y": X.shape}, {"i": places, "u": updates}, opset=opset
    )
    assert_same(model, {"x": X})


@pytest.mark.parametrize("opset", [10, 16])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_regions_were_counted_from_corners(opset: int, mode: str) -> None:
    regions, images = np.array([[0, 0, 4, 5], [1, 2, 3, 3.5]], np.float32), np.array([0, 1], np.int64)
    node = make("RoiAlign", "r", "b", mode=mode, output_height=2, output_width=3, sampling_ratio=2)
    model = model_of([node], {"x": X.shape}, {"y": [2, 4, 2, 3]}, {"r": regions, "b": images}, opset=opset)
    assert_same(model, {"x": X})


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 0, 1]])
def test_maxima_go_back_to_their_places(order: int, pads: list[int]) -> None:
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    pool = helper.make_node("MaxPool", ["x"], ["p", "places"], **window, pads=pads, storage_order=order)
    size = (6 + sum(pads[::2])) // 2
    outputs = {"p": [2, 4, size, size], "places": [2, 4, size, size]}
    model = model_of([pool], {"x": X.shape}, outputs, kinds={"places": TensorProto.INT64})
    assert_same(model, {"x": X})
    if not order and not any(pads):
        unpool = helper.make_node("MaxUnpool", ["p", "places"], ["y"], **window)
        assert_same(model_of([pool, unpool], {"x": X.shape}, {"y": X.shape}), {"x": X})
