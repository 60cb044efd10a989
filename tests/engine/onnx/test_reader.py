"""What real files have in them, and what is said of those that cannot be read."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from tests.engine.onnx.running import assert_same, in_engine, model_of
from workers.engine.clustering import Clusters
from workers.engine.constraints import Constraint, Mask
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.quantization.grid import IntegerGrid
from workers.engine.quantization.half import Half
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

RANDOM = np.random.default_rng(0)
X = {"x": ["batch", 4]}
Y = {"y": ["batch", 3]}
WEIGHT = RANDOM.normal(size=(3, 4)).astype(np.float32)
GEMM = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1, name="gemm")


def batch(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def linear(**weights: np.ndarray) -> bytes:
    return model_of([GEMM], X, Y, weights or {"w": WEIGHT})


def test_weights_in_constant_nodes() -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT))
    graph = assert_same(model_of([constant, GEMM], X, Y), {"x": batch(5, 4)})
    assert [layer.name for layer in graph.layers()] == ["w"]


def test_weights_listed_as_inputs() -> None:
    model = onnx.load_from_string(linear())
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    graph = read_onnx(model.SerializeToString())
    assert [spec.name for spec in graph.inputs] == ["x"]


@pytest.mark.parametrize("name", ["a b/c:0", "eval('1')", "class", "", "0", "x\n", "ünïcode", "self.in_0 = 1 #"])
def test_odd_names_stay_outside(name: str) -> None:
    node = helper.make_node("Gemm", ["in " + name, "w" + name], ["out " + name], transB=1, name=name)
    model = model_of([node], {"in " + name: ["batch", 4]}, {"out " + name: ["batch", 3]}, {"w" + name: WEIGHT})
    graph = assert_same(model, {"in " + name: batch(2, 4)})
    assert graph.inputs[0].name == "in " + name
    assert graph.outputs[0].name == "out " + name
    assert name not in graph.module.code or name in ("", "0", "class")
    assert set(dict(graph.module.named_parameters())) == {"linear_0.weight"}


@pytest.mark.parametrize(
    ("attribute", "value", "weights"),
    [
        ("value", numpy_helper.from_array(WEIGHT), WEIGHT),
        ("value_floats", WEIGHT[0].tolist(), WEIGHT[0]),
        ("value_float", 2.5, np.float32(2.5)),
        ("value_ints", [1, 2, 3, 4], np.array([1, 2, 3, 4])),
        ("value_int", 3, np.array(3)),
    ],
)
def test_constants_of_every_form(attribute: str, value: object, weights: np.ndarray) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], **{attribute: value}),
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    x = batch(3, 4)
    graph = assert_same(model_of(nodes, {"x": [3, 4]}, {"y": [3, 4]}), {"x": x})
    np.testing.assert_allclose(in_engine(graph, {"x": x})[0], x + weights, rtol=1e-6)


def sparse(name: str, *, linear: bool = True) -> onnx.SparseTensorProto:
    """WEIGHT without all but three of its values."""
    places = np.array([1, 6, 11]) if linear else np.array([[0, 1], [1, 2], [2, 3]])
    values = numpy_helper.from_array(WEIGHT.reshape(-1)[[1, 6, 11]], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places), [3, 4])


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_sparse_weights_become_dense(where: str, linear: bool) -> None:
    constant = helper.make_node("Constant", [], ["w"], sparse_value=sparse("", linear=linear))
    model = onnx.load_from_string(model_of([constant, GEMM] if where == "constant" else [GEMM], X, Y))
    if where == "initializer":
        model.graph.sparse_initializer.append(sparse("w", linear=linear))
    graph, x = read_onnx(model.SerializeToString()), batch(3, 4)
    dense = np.where(np.isin(np.arange(12), [1, 6, 11]).reshape(3, 4), WEIGHT, 0)
    np.testing.assert_allclose(in_engine(graph, {"x": x})[0], x @ dense.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("places", "dims"), [([1, 6, 12], [3, 4]), ([1, -1, 2], [3, 4]), ([0, 1], [3, 4]), ([0, 1, 2], [1 << 20, 1 << 20])]
)
def test_sparse_weights_that_do_not_fit(places: list[int], dims: list[int]) -> None:
    model = onnx.load_from_string(model_of([GEMM], X, Y))
    values, where = numpy_helper.from_array(WEIGHT.reshape(-1)[:3], "w"), numpy_helper.from_array(np.array(places))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, dims))
    with pytest.raises(InvalidModelError, match="the sparse tensor 'w'"):
        read_onnx(model.SerializeToString())


@pytest.mark.parametrize(
    ("node", "kernel", "shape"),
    [
        (GEMM, WEIGHT, (None, 4)),
        (helper.make_node("Conv", ["r", "w"], ["y"]), batch(6, 5, 3, 3), (None, 5, None, None)),
        (helper.make_node("Conv", ["r", "w"], ["y"], group=2), batch(6, 5, 3), (None, 10, None)),
        (helper.make_node("LSTM", ["r", "w", "w"], ["y"], hidden_size=4), batch(1, 16, 4), (None, None, 4)),
        (helper.make_node("Transpose", ["r"], ["y"], perm=[2, 0, 1]), None, (None, None, None)),
    ],
    ids=["gemm", "conv", "grouped", "lstm", "transpose"],
)
def test_inputs_without_a_shape_get_one(node: onnx.NodeProto, kernel: np.ndarray | None, shape: tuple) -> None:
    used = onnx.NodeProto()
    used.CopyFrom(node)
    used.input[0] = "r"
    relu = helper.make_node("Relu", ["x"], ["r"])
    model = onnx.load_from_string(model_of([relu, used], {"x": []}, {"y": []}, {} if kernel is None else {"w": kernel}))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = read_onnx(model.SerializeToString())
    assert graph.inputs[0].shape == shape
    onnx.checker.check_model(write_onnx(graph), full_check=True)


def test_inputs_of_which_nothing_can_be_known_are_refused() -> None:
    nodes = [helper.make_node("Reshape", ["x", "size"], ["r"]), helper.make_node("Relu", ["r"], ["y"])]
    model = onnx.load_from_string(model_of(nodes, X, {"y": [7, 11]}, {"size": np.array([7, 11])}))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedModelError, match="input 'x' has no shape"):
        read_onnx(model.SerializeToString())


def test_unknown_dimensions() -> None:
    model = onnx.load_from_string(linear())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    model.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    graph = read_onnx(model.SerializeToString())
    assert graph.inputs[0].shape == (None, 4)
    assert graph.outputs[0].shape == (None, 3)
    onnx.checker.check_model(write_onnx(graph), full_check=True)


def test_outputs_without_a_shape_get_their_rank() -> None:
    model = onnx.load_from_string(linear())
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = read_onnx(model.SerializeToString())
    assert graph.outputs[0].shape == (None, None)
    onnx.checker.check_model(write_onnx(graph), full_check=True)


def test_a_constant_that_is_no_number_is_named() -> None:
    node = helper.make_node("Add", ["x", "shift"], ["y"])
    model = model_of([node], X, {"y": ["batch", 4]}, {"shift": np.array([0, 1, np.nan, 2], np.float32)})
    with pytest.raises(InvalidModelError, match="'shift'"):
        read_onnx(model)


def test_a_scalar_integer_input() -> None:
    nodes = [helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["x", "f"], ["y"])]
    model = model_of(nodes, {"x": ["batch", 4], "n": []}, {"y": ["batch", 4]}, kinds={"n": TensorProto.INT32})
    assert_same(model, {"x": batch(3, 4), "n": np.array(7, np.int32)})


def test_an_output_that_is_used_inside_too() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["hidden"]), helper.make_node("Exp", ["hidden"], ["y"])]
    assert_same(model_of(nodes, X, {"y": ["batch", 4], "hidden": ["batch", 4]}), {"x": batch(2, 4)})


def test_outputs_that_are_inputs_constants_or_the_same_value() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Identity", ["r"], ["once"]),
        helper.make_node("Identity", ["r"], ["again"]),
        helper.make_node("Identity", ["w"], ["stored"]),
    ]
    shape = ["batch", 4]
    outputs = {"same": shape, "once": shape, "again": shape, "stored": [3, 4]}
    assert_same(model_of(nodes, X, outputs, {"w": WEIGHT}), {"x": batch(2, 4)})


def test_our_own_names_for_values_give_way_to_the_users() -> None:
    """An inner value must not take the name of an output, whatever the engine would have called it."""
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["relu"])]
    assert_same(model_of(nodes, X, {"relu": ["batch", 4]}), {"x": batch(2, 4)})


def test_dropout_and_identity_leave_nothing_behind() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b", "mask"]),
        helper.make_node("Gemm", ["b", "w"], ["y"], transB=1),
    ]
    graph = assert_same(model_of(nodes, X, Y, {"w": WEIGHT}), {"x": batch(2, 4)})
    assert [node.op for node in graph.module.graph.nodes] == ["placeholder", "call_module", "output"]


def test_metadata_is_kept_and_paths_are_not_added() -> None:
    model = model_of([GEMM], X, Y, {"w": WEIGHT}, metadata={"author": "Ada", "classes": "a,b,c"})
    written = onnx.load_from_string(write_onnx(read_onnx(model)))
    assert {entry.key: entry.value for entry in written.metadata_props} == {"author": "Ada", "classes": "a,b,c"}
    assert written.producer_name == "modelpress"
    assert not written.doc_string
    assert not written.graph.node[0].doc_string


def tied_table() -> bytes:
    nodes = [
        helper.make_node("Gather", ["tokens.weight", "x"], ["h"]),
        helper.make_node("Transpose", ["tokens.weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
    ]
    inputs, outputs = {"x": ["batch", 5]}, {"y": ["batch", 5, 300]}
    return model_of(nodes, inputs, outputs, {"tokens.weight": batch(300, 16)}, kinds={"x": TensorProto.INT64})


def test_tied_weights_are_stored_and_trained_once() -> None:
    model = tied_table()
    graph = assert_same(model, {"x": RANDOM.integers(0, 300, (2, 5))})
    assert len(list(graph.copy().module.parameters())) == 1
    assert len(write_onnx(graph)) < 1.02 * len(model)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda weight: Mask(weight.abs() > 1), 4),
        (lambda weight: Half(torch.float16), 2),
        (lambda weight: IntegerGrid.fit(weight, (0,), folded=True), 1.25),
        (lambda weight: Clusters.fit(weight, 16), 0.5),
    ],
    ids=["mask", "half", "integers", "clusters"],
)
def test_tied_weights_are_stored_once_in_any_form(make: Callable[[Tensor], Constraint], size: float) -> None:
    graph = read_onnx(tied_table())
    for layer in graph.layers():
        layer.constrain("weight", make(layer.weights["weight"].detach()))
    written = write_onnx(graph)
    assert len(written) < 300 * 16 * size + 1500
    x = RANDOM.integers(0, 300, (2, 5))
    again = assert_same(written, {"x": x})
    np.testing.assert_allclose(in_engine(again, {"x": x})[0], in_engine(graph, {"x": x})[0], rtol=1e-5, atol=1e-6)
    assert len(write_onnx(again)) < 1.02 * len(written)


def test_stored_integers_stay_integers() -> None:
    integers, scale = RANDOM.integers(-127, 127, (4, 3)).astype(np.int8), np.array([0.1, 0.2, 0.3], np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["fc.weight_quantized", "s"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = read_onnx(model_of(nodes, X, Y, {"fc.weight_quantized": integers, "s": scale}))
    x = batch(2, 4)
    np.testing.assert_allclose(in_engine(graph, {"x": x})[0], x @ (integers * scale), rtol=1e-5)
    assert [layer.name for layer in graph.layers()] == ["fc"]
    assert graph.notes == ["the file stores weights as integers, and they stay so"]


BRANCH = helper.make_graph([], "branch", [], [])


def untyped() -> bytes:
    model = onnx.load_from_string(linear())
    model.graph.input[0].type.ClearField("tensor_type")
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (untyped(), "is not a tensor"),
        (model_of([helper.make_node("Frobnicate", ["x"], ["y"])], X, Y), "Frobnicate"),
        (model_of([helper.make_node("Relu", ["x"], ["y"], domain="com.acme")], X, Y), "com.acme"),
        (model_of([helper.make_node("GetItem", ["x"], ["y"], domain="modelpress")], X, Y), "modelpress"),
        (model_of([helper.make_node("If", ["x"], ["y"], then_branch=BRANCH, else_branch=BRANCH)], X, Y), "If"),
        (model_of([helper.make_node("Elu", ["x"], ["y"], beta=1.0)], X, Y), "beta"),
        (model_of([GEMM], X, Y, {"w": np.array(["a"])}), "tensor(string)"),
    ],
    ids=["sequence", "op", "domain", "own", "if", "attribute", "texts"],
)
def test_what_onnx_runtime_does_not_load_either_is_refused_with_its_words(model: bytes, sentence: str) -> None:
    with pytest.raises(UnsupportedModelError) as raised:
        read_onnx(model)
    assert sentence in str(raised.value)


def with_initializer(**fields: object) -> bytes:
    model = onnx.load_from_string(linear())
    model.graph.initializer[0].CopyFrom(TensorProto(name="w", data_type=TensorProto.FLOAT, **fields))
    return model.SerializeToString()


POOL = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], auto_pad="__import__('os')")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (b"", "not an ONNX model"),
        (b"hello", "not an ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "no graph with nodes"),
        (linear(w=np.full((3, 4), np.nan, np.float32)), "tensor 'w' has values that are not numbers (NaN)"),
        (
            linear(w=np.full((3, 4), np.inf, np.float32)),
            "weight 'w' of Gemm node 'gemm' has values that are not finite",
        ),
        (with_initializer(dims=[1 << 40, 1 << 20]), "needs"),
        (with_initializer(dims=[3, 4], raw_data=b"12"), "needs 48 bytes but the file has 2"),
        (with_initializer(dims=[3, 4], float_data=[1.0]), "needs 12 values but the file has 1"),
        (with_initializer(dims=[-3, -4], raw_data=bytes(48)), "negative dimension"),
        (model_of([helper.make_node("Relu", ["nowhere"], ["y"])], X, Y), "'nowhere' is used, but nothing"),
        (model_of([helper.make_node("Relu", ["x"], ["x"])], X, {"x": ["batch", 4]}), "two values"),
        (model_of([helper.make_node("Relu", ["x"], ["z"])], X, Y), "'y' is used"),
        (model_of([helper.make_node("Relu", ["x"], ["y"])], X, {}), "no outputs"),
        (model_of([POOL], X, Y), "attribute 'auto_pad' has a value"),
        (model_of([helper.make_node("Elu", ["x"], ["y"], alpha="__import__('os')")], X, Y), "'alpha' has a value"),
        (model_of([helper.make_node("Concat", ["x", "x"], ["y"])], X, Y), "attribute 'axis' is missing"),
        (model_of([helper.make_node("Einsum", ["x"], ["y"], equation="ij->'+ij")], X, Y), "its equation"),
    ],
)
def test_what_is_wrong_is_said(model: bytes, sentence: str) -> None:
    with pytest.raises(InvalidModelError) as raised:
        read_onnx(model)
    assert sentence in str(raised.value)


@pytest.mark.parametrize("opset", [1, 6, 999])
def test_opsets_that_nobody_knows(opset: int) -> None:
    model = onnx.load_from_string(linear())
    model.opset_import[0].version = opset
    with pytest.raises(UnsupportedModelError, match=f"opset {opset}; 7 to"):
        read_onnx(model.SerializeToString())


def test_masks_may_be_infinite_and_are_not_trained() -> None:
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    nodes = [helper.make_node("Add", ["x", "mask"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])]
    graph = assert_same(model_of(nodes, X, {"y": [4, 4]}, {"mask": mask}), {"x": batch(4, 4)})
    assert not list(graph.module.parameters())


def test_softmax_of_older_opsets_spans_all_later_dimensions() -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=1)]
    shape = {"x": ["batch", 4, 5]}
    assert_same(model_of(nodes, shape, {"y": ["batch", 4, 5]}, opset=11), {"x": batch(2, 4, 5)})
    graph = assert_same(model_of(nodes, X, {"y": ["batch", 4]}, opset=11), {"x": batch(2, 4)})
    assert [node.op_type for node in onnx.load_from_string(write_onnx(graph)).graph.node] == ["Softmax"]
