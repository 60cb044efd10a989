"""Shapes, dtypes and counts, found on made-up inputs."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from tests.engine.onnx.running import model_of
from tests.engine.quantization.nets import net
from workers.engine.constraints import Mask
from workers.engine.errors import InvalidModelError
from workers.engine.quantization.grid import BiasGrid, IntegerGrid
from workers.engine.readers.onnx import read_onnx
from workers.engine.shapes import propagate, stats


def test_every_node_gets_its_shape_and_dtype() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("TopK", ["c", "k"], ["values", "places"], axis=1),
    ]
    weights = {"w": np.ones((6, 3, 3, 3), np.float32), "k": np.array([2])}
    outputs = {"values": ["n", 2, "h", "w"], "places": ["n", 2, "h", "w"]}
    model = model_of(nodes, {"x": ["n", 3, "h", "w"]}, outputs, weights, kinds={"places": TensorProto.INT64})
    graph = read_onnx(model)
    assert propagate(graph, batch=3, free=20) == 20
    found = {
        node.name: (node.meta["shape"], node.meta["dtype"]) for node in graph.module.graph.nodes if node.op != "output"
    }
    assert found["conv_0"] == ((3, 6, 20, 20), torch.float32)
    assert found["top_k"] == (((3, 2, 20, 20), (3, 2, 20, 20)), (torch.float32, torch.int64))


def test_open_sizes_are_tried_until_one_fits() -> None:
    pool = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[50])
    graph = read_onnx(model_of([pool], {"x": ["n", 3, "time"]}, {"y": ["n", 3, "time"]}))
    assert propagate(graph) == 64


def test_a_model_that_fits_no_size_says_where() -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = read_onnx(model_of([node], {"x": ["n", 3]}, {"y": ["n", 3]}, {"w": np.ones(7, np.float32)}))
    with pytest.raises(InvalidModelError, match=r"^add: The size of tensor a"):
        propagate(graph)
    assert stats(graph).macs is None


def test_counts_follow_the_constraints() -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    weights = {"w": np.ones((5, 4), np.float32), "b": np.ones(5, np.float32)}
    graph = read_onnx(model_of([node], {"x": ["n", 4]}, {"y": ["n", 5]}, weights))
    assert stats(graph).model_dump() == {
        "parameters": 25,
        "nonzeros": 25,
        "macs": 20,
        "layers": 1,
        "opset": 17,
        "ops": {"Gemm": 1},
    }
    keep = torch.ones(5, 4, dtype=torch.bool)
    keep[0] = False
    next(graph.layers()).constrain("weight", Mask(keep))
    counted = stats(graph)
    assert (counted.parameters, counted.nonzeros, counted.macs) == (25, 21, 20)


def test_tied_weights_count_once_whatever_constrains_them() -> None:
    graph = net("tied")
    before = stats(graph)
    for layer in graph.layers():
        layer.constrain("weight", IntegerGrid.fit(layer.module.weight, (0,)))
        layer.constrain("bias", BiasGrid(torch.ones(len(layer.module.bias)) * 1e-6))
    assert len(list(graph.layers())) == 4
    assert before.parameters == stats(graph).parameters == 2 * (24 * 24 + 24) + 24 + 4 * 24 + 4
