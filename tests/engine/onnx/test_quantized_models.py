"""Files that are quantized already are models like others: their integers stay where they are."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.engine.onnx.odd_models import floats, made
from tests.engine.onnx.running import assert_same, in_engine, in_runtime, model_of
from tests.engine.steps.nets import KINDS, apply, context_for, trained
from workers.engine.ops.opaque import Opaque
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.grid import IntegerGrid
from workers.engine.readers.onnx import read_onnx
from workers.engine.shapes import stats
from workers.engine.writers.onnx import write_onnx

RANDOM = np.random.default_rng(0)


def ops(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


@pytest.mark.parametrize("kind", KINDS)
def test_what_static_quantization_made_is_read_and_written_as_it_was(kind: str) -> None:
    made = apply(trained(kind), context_for(kind), {"step": "static_quantization", "keep_float": 1.0})
    file = write_onnx(made)
    graph = read_onnx(file)
    assert any(isinstance(module, FakeQuantize) for module in graph.module.modules())
    again = write_onnx(graph)
    assert ops(again) == ops(file)
    assert len(again) < 1.03 * len(file)
    feeds = {graph.inputs[0].name: floats(*(size if isinstance(size, int) else 5 for size in graph.inputs[0].shape))}
    expected = in_runtime(file, feeds)[0]
    np.testing.assert_allclose(in_runtime(again, feeds)[0], expected, atol=1e-5)
    np.testing.assert_allclose(in_engine(graph, feeds)[0], expected, atol=0.02 * np.abs(expected).max())


def pair(kind: type, zero: int, **read: float) -> bytes:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "r", "z"], ["y"]),
    ]
    scales = {"s": np.float32(0.05), "r": np.float32(read.get("scale", 0.05)), "z": np.array(zero, kind)}
    return model_of(nodes, {"x": ["N", 6]}, {"y": ["N", 6]}, scales)


@pytest.mark.parametrize(
    "model",
    [pair(np.uint8, 0), pair(np.uint8, 77), pair(np.int8, 0), pair(np.int8, -13), pair(np.uint8, 3, scale=0.1)],
    ids=["uint8", "shifted", "int8", "shifted int8", "gain"],
)
def test_pairs_become_one_leaf(model: bytes) -> None:
    graph = assert_same(model, {"x": floats(40, 6) * 8}, tolerance=1e-6)
    assert stats(graph).ops == {"FakeQuantize": 1}


def test_integers_between_other_ops_stay_integers() -> None:
    model = made(
        """m (float[N, 6] x) => (float[N, 6] y, uint8[6, N] turned) {
            q = QuantizeLinear(x, s, z)
            turned = Transpose<perm = [1, 0]>(q)
            back = Transpose<perm = [1, 0]>(turned)
            y = DequantizeLinear(back, s, z)
        }""",
        s=np.float32(0.05), z=np.uint8(100),
    )  # fmt: skip
    graph = assert_same(model.SerializeToString(), {"x": floats(4, 6)}, tolerance=1e-6)
    assert not any(isinstance(module, (Opaque, FakeQuantize)) for module in graph.module.modules())


def test_activations_with_a_scale_a_channel() -> None:
    model = made(
        """m (float[N, 3, 5] x) => (float[N, 3, 5] y) {
            q = QuantizeLinear<axis = 1>(x, s, z)
            y = DequantizeLinear<axis = 1>(q, s, z)
        }""",
        s=np.array([0.01, 0.02, 0.04], np.float32), z=np.array([0, 10, 128], np.uint8),
    )  # fmt: skip
    assert_same(model.SerializeToString(), {"x": floats(4, 3, 5)}, tolerance=1e-6)


def test_weights_on_a_grid_stay_on_it_through_steps() -> None:
    integers = RANDOM.integers(-127, 128, (320, 24)).astype(np.int8)
    scale = (np.abs(floats(24)) / 100 + 1e-3).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["fc.weight_quantized", "s"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["N", 320]}, {"y": ["N", 24]}, {"fc.weight_quantized": integers, "s": scale})
    graph = assert_same(model, {"x": floats(4, 320)})
    (layer,) = graph.layers()
    (grid,) = layer.constraints("weight")
    assert isinstance(grid, IntegerGrid)
    stored = {tensor.data_type for tensor in onnx.load_from_string(write_onnx(graph)).graph.initializer}
    assert TensorProto.INT8 in stored
    assert len(write_onnx(graph)) < 1.1 * len(model)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("channels", [True, False])
def test_integers_of_foreign_quantizers_stay_too(kind: type, channels: bool) -> None:
    """All 256 of them, with a zero point that is not zero."""
    bounds = np.iinfo(kind)
    integers = np.clip(RANDOM.integers(bounds.min, bounds.max + 1, (24, 32)), bounds.min, bounds.max).astype(kind)
    integers[0, :2] = bounds.min, bounds.max
    nodes = [
        helper.make_node("DequantizeLinear", ["w_q", "s", "z"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    scale = np.linspace(0.01, 0.1, 32, dtype=np.float32) if channels else np.float32(0.02)
    zero = RANDOM.integers(0, 100, 32).astype(kind) if channels else np.array(7, kind)
    model = model_of(nodes, {"x": ["N", 24]}, {"y": ["N", 32]}, {"w_q": integers, "s": scale, "z": zero})
    graph = assert_same(model, {"x": floats(2, 24)})
    assert graph.notes == ["the file stores weights as integers, and they stay so"]
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(write_onnx(graph)).graph.initializer]
    assert any(array.dtype == kind and array.shape == integers.shape and (array == integers).all() for array in stored)


def test_integers_in_blocks_become_floats() -> None:
    model = made(
        """m (float[N, 8] x) => (float[N, 4] y) {
            w = DequantizeLinear<axis = 0, block_size = 4>(q, s)
            y = MatMul(x, w)
        }""",
        q=RANDOM.integers(-100, 100, (8, 4)).astype(np.int8), s=np.abs(floats(2, 4)),
    )  # fmt: skip
    model.opset_import[0].version = 21
    graph = assert_same(model.SerializeToString(), {"x": floats(3, 8)})
    assert "read as floats" in graph.notes[0]


def test_kernels_that_compute_in_integers_are_kept() -> None:
    model = made(
        """m (float[N, 2, 8, 8] x) => (float[N, 3, 6, 6] y) {
            q = QuantizeLinear(x, s, z)
            c = QLinearConv(q, s, z, w, ws, wz, t, z)
            y = DequantizeLinear(c, t, z)
        }""",
        s=np.float32(0.05), z=np.uint8(128), t=np.float32(0.1), ws=np.float32(0.02), wz=np.int8(0),
        w=RANDOM.integers(-127, 128, (3, 2, 3, 3)).astype(np.int8),
    )  # fmt: skip
    graph = assert_same(model.SerializeToString(), {"x": floats(2, 2, 8, 8)})
    assert [str(module) for module in graph.module.modules() if isinstance(module, Opaque)] == ["QLinearConv"]


@pytest.mark.parametrize("form", ["dynamic_quantization", "half_precision"])
def test_what_other_steps_made_is_read_too(form: str) -> None:
    graph = apply(trained("recurrent"), context_for("recurrent"), {"step": form})
    feeds = {graph.inputs[0].name: floats(3, 10, 8)}
    assert_same(write_onnx(graph), feeds)


def test_recurrent_layers_that_compute_in_integers_are_kept() -> None:
    layer = torch.nn.LSTM(64, 64, batch_first=True)
    weights = [layer.weight_ih_l0, layer.weight_hh_l0]
    quantized = [(w.detach().t()[None] * 400).round().clamp(-127, 127).to(torch.int8).numpy() for w in weights]
    model = made(
        """m (float[T, N, 64] x) => (float[T, 1, N, 64] y) {
            y = com.microsoft.DynamicQuantizeLSTM<hidden_size = 64>(x, W, R, , , , , , s, z, s, z)
        }""",
        W=quantized[0], R=quantized[1], s=np.full((1, 256), 1 / 400, np.float32), z=np.zeros((1, 256), np.int8),
    )  # fmt: skip
    graph = assert_same(model.SerializeToString(), {"x": floats(5, 2, 64)})
    assert [str(m) for m in graph.module.modules() if isinstance(m, Opaque)] == ["com.microsoft.DynamicQuantizeLSTM"]


@pytest.mark.parametrize("step", ["dynamic_quantization", "half_precision"])
def test_weights_stay_in_the_form_in_which_a_file_stores_them(step: str) -> None:
    """Also where they are unfolded by a cast, and a product, and not by `DequantizeLinear`."""
    file = write_onnx(apply(trained("recurrent"), context_for("recurrent"), {"step": step}))
    once = read_onnx(file)
    again = write_onnx(once)
    assert ops(again) == ops(file)
    assert len(again) == len(write_onnx(read_onnx(again))) == len(file)
    assert [layer.name for layer in read_onnx(again).layers()] == [layer.name for layer in once.layers()]


def test_weights_that_a_kept_part_wants_as_constants_may_be_computed_from_some() -> None:
    integers = RANDOM.integers(-100, 100, (1, 64, 256)).astype(np.float32)
    model = made(
        """m (float[T, N, 64] x) => (float[T, 1, N, 64] y) {
            q = Cast<to = 3>(W)
            y = com.microsoft.DynamicQuantizeLSTM<hidden_size = 64>(x, q, q, , , , , , s, z, s, z)
        }""",
        W=integers, s=np.full((1, 256), 1 / 400, np.float32), z=np.zeros((1, 256), np.int8),
    )  # fmt: skip
    graph = assert_same(model.SerializeToString(), {"x": floats(5, 2, 64)})
    assert any(isinstance(module, Opaque) for module in graph.module.modules())
