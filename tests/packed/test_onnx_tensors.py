"""Tensors are found wherever ONNX keeps them; what only looks like ONNX is left as it is."""

import io

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelpress.packed.onnx_tensors import BYTE, DOUBLE, FLOAT, HALF, SMALLEST, Walk
from tests.packed.models import holding, normal, onnx_file


def found(data: bytes):
    return list(Walk(io.BytesIO(data)).tensors(len(data)))


def contents(data: bytes) -> list[bytes]:
    return [data[tensor.start : tensor.start + tensor.size] for tensor in found(data)]


def test_initializers():
    weights = [normal(20, 30), normal(40, 50).astype(np.float16), np.arange(500), normal(3)]
    data = holding(*weights)
    assert contents(data) == [weight.tobytes() for weight in weights[:3]]
    assert [tensor.kind.width for tensor in found(data)] == [4, 2, 8]
    assert [tensor.dims for tensor in found(data)] == [(20, 30), (40, 50), (500,)]


def test_constants_in_attributes_and_subgraphs():
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(normal(30, 40), "c"))
    inside = helper.make_graph([constant], "then", [], [helper.make_tensor_value_info("c", 1, None)])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inside, else_branch=inside)
    data = onnx_file([], [constant, branch])
    assert contents(data) == [normal(30, 40).tobytes()] * 3


def test_functions_and_sparse_tensors():
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(normal(30, 40), "c"))
    function = helper.make_function("own", "F", [], ["c"], [constant], [helper.make_opsetid("", 17)])
    values = numpy_helper.from_array(normal(300), "s")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.arange(300), "i"), [1000])
    graph = helper.make_graph([], "main", [], [], sparse_initializer=[sparse])
    data = helper.make_model(graph, functions=[function]).SerializeToString()
    assert set(contents(data)) == {normal(30, 40).tobytes(), normal(300).tobytes(), np.arange(300).tobytes()}


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (TensorProto.FLOAT, FLOAT),
        (TensorProto.DOUBLE, DOUBLE),
        (TensorProto.FLOAT16, BYTE),
        (TensorProto.INT64, BYTE),
    ],
)
def test_typed_fields(type_, kind):
    """Float and double fields hold plain numbers; the others hold numbers of varying length."""
    (tensor,) = found(onnx_file([helper.make_tensor("w", type_, [40, 50], normal(2000).round(2) * 100)]))
    assert tensor.kind == kind
    assert tensor.dims == ()


def test_raw_halves():
    (tensor,) = found(holding(normal(40, 50).astype(np.float16)))
    assert tensor.kind == HALF


def test_dims_after_the_data():
    """Protobuf fields come in any order."""
    weight = normal(20, 30)
    tensor = b"\x4a" + onnx_length(weight.nbytes) + weight.tobytes() + b"\x08\x14\x08\x1e\x10\x01"
    graph = b"\x2a" + onnx_length(len(tensor)) + tensor
    data = b"\x3a" + onnx_length(len(graph)) + graph
    assert len(onnx.load_from_string(data).graph.initializer) == 1
    (one,) = found(data)
    assert (one.kind, one.dims) == (FLOAT, (20, 30))


def onnx_length(value: int) -> bytes:
    return bytes([value & 127 | 128, value >> 7]) if value >= 128 else bytes([value])


@given(st.binary(max_size=400), st.integers(0, 2000))
@settings(deadline=None, max_examples=300)
def test_hostile_bytes_are_nobodys_tensor_or_lie_inside_the_file(noise, at):
    data = bytearray(holding(normal(20, 30), normal(300)))
    data[at : at + len(noise)] = noise
    end = 0
    for tensor in found(bytes(data)):
        assert tensor.start >= end
        assert tensor.size >= SMALLEST
        end = tensor.start + tensor.size
    assert end <= len(data)


def test_messages_inside_one_another_without_end():
    """A graph in an attribute in a node in a graph…: a walk without a limit would exhaust the stack."""
    data = normal(300).tobytes()
    for _ in range(200):
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            data = tag + long_length(len(data)) + data
    data = b"\x3a" + long_length(len(data)) + data
    assert found(data) == []


def test_millions_of_empty_fields_are_not_all_looked_at():
    data = b"\x3a" + long_length(6_000_000) + b"\x10\x00" * 3_000_000
    walk = Walk(io.BytesIO(data))
    assert list(walk.tensors(len(data))) == []
    assert walk.fields_left == 0


def long_length(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
