"""Weights in the form that their constraints gave them, and files that runtimes accept."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from tests.engine.onnx.nets import example, export
from tests.engine.onnx.running import in_engine, in_runtime, model_of
from workers.engine.constraints import Constraint, Mask
from workers.engine.encodings import Encoding, HalfFloat, Integers
from workers.engine.errors import UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers import onnx as writer
from workers.engine.writers.onnx import write_onnx

RANDOM = np.random.default_rng(0)
X = {"x": ["batch", 8]}
Y = {"y": ["batch", 6]}


class Grid(Constraint):
    """Multiples of a step."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, weight: Tensor) -> Tensor:
        return torch.round(weight / self.step) * self.step

    def encode(self, weight: Tensor) -> Encoding:
        integers = torch.round(weight / self.step).to(torch.int8)
        rows = weight.shape[0]
        return Integers(integers, torch.full((rows,), self.step), torch.zeros(rows, dtype=torch.int8), axis=0)


class Half(Constraint):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.half().float()

    def encode(self, weight: Tensor) -> Encoding:
        return HalfFloat(weight.half())


def linear(op: str) -> Graph:
    weight, bias = RANDOM.normal(size=(8, 6)).astype(np.float32), RANDOM.normal(size=6).astype(np.float32)
    node = helper.make_node(op, ["x", "fc.weight", *(["fc.bias"] if op == "Gemm" else [])], ["y"])
    return read_onnx(model_of([node], X, Y, {"fc.weight": weight, "fc.bias": bias}))


def stored(model: bytes) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load_from_string(model).graph.initializer}


def assert_runs_alike(graph: Graph, model: bytes, tolerance: float = 1e-5) -> None:
    onnx.checker.check_model(model, full_check=True)
    x = {"x": RANDOM.normal(size=(3, 8)).astype(np.float32)}
    np.testing.assert_allclose(in_runtime(model, x)[0], in_engine(graph, x)[0], rtol=tolerance, atol=tolerance)


def test_a_mask_leaves_plain_floats() -> None:
    graph = linear("Gemm")
    (layer,) = graph.layers()
    layer.constrain("weight", Mask(torch.rand(6, 8) > 0.5))
    model = write_onnx(graph)
    assert stored(model)["fc.weight"].data_type == TensorProto.FLOAT
    assert_runs_alike(graph, model)


def test_the_encoding_of_the_last_constraint_is_stored() -> None:
    graph = linear("Gemm")
    (layer,) = graph.layers()
    layer.constrain("weight", Mask(torch.rand(6, 8) > 0.5))
    layer.constrain("weight", Grid(0.05))
    model = write_onnx(graph)
    weights = stored(model)
    assert weights["fc.weight_quantized"].data_type == TensorProto.INT8
    assert "fc.weight" not in weights
    assert_runs_alike(graph, model)


class Moved(Constraint):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.01


def test_a_later_constraint_that_leaves_the_grid_takes_the_encoding_away() -> None:
    graph = linear("Gemm")
    (layer,) = graph.layers()
    layer.constrain("weight", Grid(0.05))
    layer.constrain("weight", Moved())
    model = write_onnx(graph)
    assert set(stored(model)) == {"fc.weight", "fc.bias"}
    assert_runs_alike(graph, model)


def test_zeros_of_a_later_mask_are_on_the_grid() -> None:
    graph = linear("Gemm")
    (layer,) = graph.layers()
    layer.constrain("weight", Grid(0.05))
    layer.constrain("weight", Mask(torch.rand(6, 8) > 0.5))
    model = write_onnx(graph)
    integers = numpy_helper.to_array(stored(model)["fc.weight_quantized"])
    assert (integers == 0).mean() > 0.2
    assert_runs_alike(graph, model)


def test_a_later_constraint_that_changes_nothing_keeps_the_encoding() -> None:
    graph = linear("Gemm")
    (layer,) = graph.layers()
    layer.constrain("weight", Grid(0.05))
    layer.constrain("weight", Mask(torch.ones(6, 8, dtype=torch.bool)))
    assert "fc.weight_quantized" in stored(write_onnx(graph))


def test_a_product_stores_its_integers_as_onnx_has_the_matrix() -> None:
    graph = linear("MatMul")
    (layer,) = graph.layers()
    layer.constrain("weight", Grid(0.05))
    model = write_onnx(graph)
    (dequantize,) = [node for node in onnx.load_from_string(model).graph.node if node.op_type == "DequantizeLinear"]
    assert list(stored(model)["fc.weight_quantized"].dims) == [8, 6]
    assert helper.get_node_attr_value(dequantize, "axis") == 1
    again = read_onnx(model)
    x = {"x": RANDOM.normal(size=(3, 8)).astype(np.float32)}
    np.testing.assert_allclose(in_engine(again, x)[0], in_engine(graph, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_half_floats_come_back_as_the_same_layer(op: str) -> None:
    graph = linear(op)
    (layer,) = graph.layers()
    layer.constrain("weight", Half())
    model = write_onnx(graph)
    assert stored(model)["fc.weight_half"].data_type == TensorProto.FLOAT16
    assert_runs_alike(graph, model)
    (again,) = read_onnx(model).layers()
    assert again.name == "fc"
    assert torch.equal(again.weights["weight"], layer.weights["weight"])


def test_a_bias_has_constraints_of_its_own() -> None:
    graph = linear("Gemm")
    (layer,) = graph.layers()
    layer.constrain("bias", Grid(0.1))
    model = write_onnx(graph)
    assert "fc.bias_quantized" in stored(model)
    assert_runs_alike(graph, model)


def test_constrained_graphs_train_and_copy() -> None:
    graph = linear("Gemm")
    (layer,) = graph.layers()
    layer.constrain("weight", Mask(torch.rand(6, 8) > 0.5))
    copied = graph.copy()
    copied(torch.randn(2, 8))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in copied.module.parameters())
    assert all(parameter.grad is None for parameter in graph.module.parameters())
    assert write_onnx(copied) == write_onnx(graph)


def test_the_same_bytes_every_time() -> None:
    graph = linear("Gemm")
    assert write_onnx(graph) == write_onnx(graph) == write_onnx(graph.copy())


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)])
def test_other_float_types_pass_through(kind: int, dtype: type) -> None:
    weight = RANDOM.normal(size=(8, 6)).astype(dtype)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], X, Y, {"w": weight}, kinds={"x": kind, "y": kind})
    x = {"x": RANDOM.normal(size=(3, 8)).astype(dtype)}
    written = write_onnx(read_onnx(model))
    np.testing.assert_array_equal(in_runtime(written, x)[0], in_runtime(model, x)[0])


def test_results_above_two_gigabytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LARGEST_FILE", 100)
    with pytest.raises(UnsupportedModelError, match="larger than 2 GiB"):
        write_onnx(linear("Gemm"))


@pytest.mark.parametrize(("name", "opset"), [("perceptron", 13), ("mobile", 13), ("encoder", 17), ("lstm", 11)])
def test_users_names_are_kept(name: str, opset: int) -> None:
    original = onnx.load_from_string(export(*example(name), f"torchscript-{opset}"))
    written = onnx.load_from_string(write_onnx(read_onnx(original.SerializeToString())))
    assert list(written.graph.input) == list(original.graph.input)
    assert [info.name for info in written.graph.output] == [info.name for info in original.graph.output]
    weights = {tensor.name for tensor in original.graph.initializer if len(tensor.dims) > 1}
    assert weights
    assert weights <= {tensor.name for tensor in written.graph.initializer}
    layers = [node for node in original.graph.node if node.op_type in ("Conv", "Gemm", "MatMul", "LSTM")]
    assert layers
    assert {node.name for node in layers} <= {node.name for node in written.graph.node}
    made = {output for node in written.graph.node for output in node.output}
    assert {node.output[0] for node in layers} <= made


def test_a_matrix_keeps_its_name_also_where_it_is_laid_out_anew() -> None:
    for op, inputs in (("Gemm", ["x", "W", "B"]), ("MatMul", ["x", "W"])):
        weights = {"W": RANDOM.normal(size=(8, 6)).astype(np.float32), "B": RANDOM.normal(size=6).astype(np.float32)}
        node = helper.make_node(op, inputs, ["y"], name="product")
        model = write_onnx(read_onnx(model_of([node], X, Y, {name: weights[name] for name in inputs[1:]})))
        assert set(stored(model)) == set(inputs[1:])
        assert [node.name for node in onnx.load_from_string(model).graph.node] == ["product"]


def test_what_a_file_says_of_itself_is_kept() -> None:
    model = onnx.load_from_string(model_of([helper.make_node("Relu", ["x"], ["y"])], X, {"y": ["batch", 8]}))
    model.doc_string, model.domain, model.model_version = "A rectifier.", "org.example", 3
    model.producer_name, model.producer_version = "pytorch", "2.13.0"
    model.graph.name, model.graph.doc_string = "rectifier", "One node."
    helper.set_model_props(model, {"author": "somebody", "labels": "a,b"})
    for _ in range(2):  # what this engine wrote is read again
        written = onnx.load_from_string(write_onnx(read_onnx(model.SerializeToString())))
        assert (written.doc_string, written.domain, written.model_version) == ("A rectifier.", "org.example", 3)
        assert (written.producer_name, written.producer_version) == ("modelpress", "pytorch 2.13.0")
        assert (written.graph.name, written.graph.doc_string) == ("rectifier", "One node.")
        assert {entry.key: entry.value for entry in written.metadata_props} == {"author": "somebody", "labels": "a,b"}
        model = written
