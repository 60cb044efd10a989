"""Every form in which a weight can be stored, written with real layers and run by ONNX Runtime."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from tests.engine.onnx.running import in_engine, in_runtime, model_of
from workers.engine.constraints import Constraint
from workers.engine.encodings import BlockIntegers, Codebook, Encoding, ProductIntegers, packed
from workers.engine.graph import Graph
from workers.engine.packed_encodings import PackedIntegers
from workers.engine.quantization.blocks import Blocks, order_of
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

GENERATOR = np.random.default_rng(0)


class Form(Constraint):
    """A weight that has become what its encoding stores."""

    def __init__(self, value: Tensor, encoding: Encoding) -> None:
        super().__init__()
        self.register_buffer("value", value)
        self.encoding = encoding

    def forward(self, weight: Tensor) -> Tensor:
        return self.value + 0 * weight

    def encode(self, weight: Tensor) -> Encoding:
        return self.encoding


def layer(op: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of one layer, and an input."""
    rows, columns = ({"LSTM": 32, "GRU": 24}.get(op, 0), 40)
    shapes = {
        "MatMul": {"fc.weight": (40, 24)},
        "Gemm": {"fc.weight": (24, 40), "fc.bias": (24,)},
        "Conv": {"conv.weight": (6, 3, 3, 3)},
        "Gather": {"words.weight": (50, 24)},
        "LSTM": {"cell.weight_ih": (2, rows, columns), "cell.weight_hh": (2, rows, 8), "cell.bias": (2, 2 * rows)},
        "GRU": {"cell.weight_ih": (2, rows, columns), "cell.weight_hh": (2, rows, 8), "cell.bias": (2, 2 * rows)},
    }[op]
    weights = {name: GENERATOR.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    inputs, outputs = ["x", *weights], ["y"]
    attributes: dict[str, object] = {}
    x, shape = GENERATOR.standard_normal((4, 40), dtype=np.float32), ["n", 40]
    match op:
        case "Gemm":
            attributes = {"transB": 1}
        case "Conv":
            x, shape = GENERATOR.standard_normal((2, 3, 8, 8), dtype=np.float32), ["n", 3, 8, 8]
        case "Gather":
            inputs, x, shape = ["words.weight", "x"], GENERATOR.integers(0, 50, (2, 5)), ["n", 5]
        case "LSTM" | "GRU":
            attributes = {"direction": "bidirectional", "hidden_size": 8}
            x, shape = GENERATOR.standard_normal((5, 2, 40), dtype=np.float32), [5, "n", 40]
    rank = {"Conv": 4, "Gather": 3, "LSTM": 4, "GRU": 4}.get(op, 2)
    node = helper.make_node(op, inputs, outputs, **attributes)
    kinds = {"x": TensorProto.INT64} if op == "Gather" else {}
    model = model_of([node], {"x": shape}, {"y": [None] * rank}, weights, kinds=kinds)
    return read_onnx(model), {"x": x}


def blocks(weight: Tensor, width: int, block: int, *, signed: bool, products: bool = False) -> tuple[Tensor, Encoding]:
    """Random integers, scales and zero points for a weight, and the floats that they stand for."""
    count = -(-weight.shape[-1] // block)
    low, high = (-(2 ** (width - 1)), 2 ** (width - 1)) if signed else (0, 2**width)
    kind = torch.int8 if signed else torch.uint8
    values = torch.randint(low, high, weight.shape, dtype=torch.int64).to(kind)
    scale = torch.rand(*weight.shape[:-1], count) / 2**width + 0.01
    zero_point = None if signed else torch.randint(low, high, scale.shape).to(kind)
    spread = [
        None if t is None else t.repeat_interleave(block, -1)[..., : weight.shape[-1]] for t in (scale, zero_point)
    ]
    value = (values.float() - (0 if spread[1] is None else spread[1].float())) * spread[0]
    return value, (ProductIntegers if products else BlockIntegers)(values, scale, zero_point, block, width)


def assert_runs_as_written(
    graph: Graph, x: dict[str, np.ndarray], tolerance: float = 2e-5, **forms: tuple[Tensor, Encoding]
) -> bytes:
    """ONNX Runtime's answers are those of the engine, and the file reads as the same again."""
    (found,) = graph.layers()
    for name, (value, encoding) in forms.items():
        found.constrain(name, Form(value, encoding))
    model = write_onnx(graph)
    assert write_onnx(graph) == model
    (expected,) = in_engine(graph, x)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(in_runtime(model, x)[0], expected, rtol=1e-5, atol=tolerance)
    again = read_onnx(model)
    np.testing.assert_allclose(in_engine(again, x)[0], expected, rtol=1e-5, atol=2e-5)
    assert [layer.name for layer in again.layers()] == [found.name]
    return model


def kinds(model: bytes) -> set[int]:
    return {tensor.data_type for tensor in onnx.load_from_string(model).graph.initializer}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("width", [8, 4, 2])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv", "Gather"])
def test_blocks_of_integers(op: str, width: int, signed: bool) -> None:
    graph, x = layer(op)
    (found,) = graph.layers()
    block = 3 if op == "Conv" else 16
    rounded = op == "MatMul" and width > 2  # ONNX Runtime rounds the input to 8 bits as well, of its own accord
    form = blocks(found.weights["weight"], width, block, signed=signed)
    model = assert_runs_as_written(graph, x, 0.1 if rounded else 2e-5, weight=form)
    wanted = {8: {"INT8", "UINT8"}, 4: {"INT4", "UINT4"}, 2: {"INT2", "UINT2"}}[width]
    assert kinds(model) & {TensorProto.DataType.Value(kind) for kind in wanted}


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_recurrent_weights_have_a_scale_for_each_row_of_each_direction(op: str, width: int) -> None:
    graph, x = layer(op)
    (found,) = graph.layers()
    forms = {name: blocks(weight, width, weight.shape[-1], signed=True) for name, weight in found.weights.items()}
    assert set(forms) == {"weight_ih", "weight_hh"}
    model = assert_runs_as_written(graph, x, **forms)
    assert len(model) < 0.7 * len(write_onnx(layer(op)[0]))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("width", [8, 4, 2])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_products_that_are_computed_from_packed_integers(op: str, width: int, signed: bool) -> None:
    graph, x = layer(op)
    (found,) = graph.layers()
    value, encoding = blocks(found.weights["weight"], width, 16, signed=False, products=True)
    if signed:  # without a zero point, the middle is zero
        middle = ProductIntegers(encoding.values, encoding.scale, None, 16, width)
        scale = encoding.scale.repeat_interleave(16, -1)[:, :40]
        value, encoding = (encoding.values.float() - 2 ** (width - 1)) * scale, middle
    model = assert_runs_as_written(graph, x, weight=(value, encoding))
    assert [node.op_type for node in onnx.load_from_string(model).graph.node] == ["MatMulNBits"]


def test_what_is_no_product_unfolds_the_same_integers() -> None:
    graph, x = layer("Gather")
    (found,) = graph.layers()
    assert_runs_as_written(graph, x, weight=blocks(found.weights["weight"], 4, 16, signed=False, products=True))


@pytest.mark.parametrize("entries", [2, 3, 4, 16, 200])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv", "Gather", "LSTM"])
def test_codebooks(op: str, entries: int) -> None:
    graph, x = layer(op)
    (found,) = graph.layers()
    name, weight = next(iter(found.weights.items()))
    indices = torch.randint(0, entries, weight.shape).to(torch.uint8)
    book = torch.randn(entries)
    encoding = Codebook(indices, book)
    assert encoding.bits == {2: 1, 3: 2, 4: 2, 16: 4, 200: 8}[entries]
    model = assert_runs_as_written(graph, x, **{name: (book[indices.long()], encoding)})
    stored = {tensor.name: tensor for tensor in onnx.load_from_string(model).graph.initializer}
    held = next(
        tensor for tensor in stored.values() if "_indices" in tensor.name and tensor.data_type == TensorProto.UINT8
    )
    assert len(held.raw_data) == -(-indices.numel() * int(encoding.bits) // 8)


@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_one_bit_and_a_scale_for_each_channel(op: str) -> None:
    graph, x = layer(op)
    (found,) = graph.layers()
    weight = found.weights["weight"]
    signs = (weight > 0).to(torch.uint8)
    scale = weight.abs().mean(tuple(range(1, weight.dim())), keepdim=True)
    encoding = Codebook(signs, torch.tensor([-1.0, 1.0]), scale)
    assert_runs_as_written(graph, x, weight=((2.0 * signs - 1) * scale, encoding))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_first_value_lies_lowest_in_a_byte(bits: int) -> None:
    values = torch.arange(8 // bits + 1).to(torch.uint8) % 2**bits
    by_hand = sum(int(value) << (bits * place) for place, value in enumerate(values[:-1]))
    assert packed(values, bits).tolist() == [by_hand, int(values[-1])]


@given(
    op=st.sampled_from(["MatMul", "Gemm", "Conv", "Gather", "LSTM", "GRU"]),
    width=st.sampled_from([8, 4, 3, 2]),
    length=st.sampled_from([8, 16, 24]),
    zeros=st.sampled_from(["middle", "whole", "between"]),
)
@settings(max_examples=40, deadline=None)
def test_packed_rows_of_blocks(op: str, width: int, length: int, zeros: str) -> None:
    graph, x = layer(op)
    (found,) = graph.layers()
    name, weight = next(iter(found.weights.items()))
    axes = (0, 1) if op in ("LSTM", "GRU") else (0,)
    blocks = Blocks(axes, length)
    rows, count = blocks.split(weight).shape[:2]
    values = torch.randint(0, 2**width, (rows, count, length)).to(torch.uint8)
    scale = (torch.rand(rows, count, 1) / 2**width + 0.01).bfloat16()
    zero: Tensor | int = 2 ** (width - 1)
    if zeros != "middle":
        drawn = torch.rand(rows, count, 1) * (2**width - 1)
        zero = drawn.round().to(torch.uint8) if zeros == "whole" else drawn.bfloat16()
    value = blocks.join((values.float() - (zero.float() if isinstance(zero, Tensor) else zero)) * scale, weight.shape)
    encoding = PackedIntegers(values, scale, zero, width, tuple(weight.shape), order_of(axes, weight.dim()))
    model = assert_runs_as_written(graph, x, **{name: (value, encoding)})
    held = [tensor for tensor in onnx.load_from_string(model).graph.initializer if f"{name}_" in tensor.name]
    taken = sum(
        len(tensor.raw_data) for tensor in held if tensor.data_type in (TensorProto.UINT8, TensorProto.BFLOAT16)
    )
    assert taken == pytest.approx(encoding.bits * weight.numel() / 8, abs=1)
