"""What is asked of ONNX Runtime itself: sessions, batches, latency, memory, sizes."""

import numpy as np
import pytest
import torch
import zstandard
from torch import nn

from modelpress.models import ModelStats, Signature, TensorSpec
from tests.engine.pipeline.models import as_onnx, convolutional, mlp
from tests.engine.pipeline.test_unusual_models import model
from workers.engine.data import SyntheticBatches
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.measuring.environment import environment, own_runtime, processor
from workers.engine.measuring.latency import measure_latency
from workers.engine.measuring.memory import measure_memory
from workers.engine.measuring.size import measure_size
from workers.engine.runtime import arrays, open_session


def test_a_fixed_batch_is_filled_up_and_cut_back():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 3))
    x = torch.randn(10, 5)
    session = open_session(as_onnx(net, (4, 5)), 1)
    assert session.batch == 4
    (found,) = session.run_all(arrays([x]))
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_an_output_of_one_number_has_one_for_each_piece():
    text = "m (float[4, 5] x) => (float[4, 5] y, float s) { y = Neg(x) s = ReduceSum<keepdims = 0>(x) }"
    x = torch.randn(12, 5)
    rows, numbers = open_session(model(text), 1).run_all(arrays([x]))
    np.testing.assert_array_equal(rows, -x.numpy())
    np.testing.assert_allclose(numbers, [piece.sum() for piece in x.split(4)], rtol=1e-5, atol=1e-5)


def test_a_model_against_itself_is_as_fast():
    a, b = open_session(mlp(), 1), open_session(mlp(), 1)
    found = measure_latency(a, b, [np.zeros((1, 16), np.float32)], batch=1, threads=1, seed=0)
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.original.median_ms <= found.original.p95_ms
    assert found.pairs >= 7


def test_a_larger_model_is_slower():
    large = as_onnx(nn.Sequential(nn.Linear(16, 2000), nn.ReLU(), nn.Linear(2000, 2000)), ("batch", 16))
    found = measure_latency(
        open_session(large, 1), open_session(mlp(), 1), [np.zeros((1, 16), np.float32)], batch=1, threads=1, seed=0
    )
    assert found.ratio_low > 3


def test_peak_memory_grows_with_the_model(tmp_path):
    large = as_onnx(nn.Sequential(nn.Linear(16, 3000), nn.ReLU(), nn.Linear(3000, 3000)), ("batch", 16))
    (tmp_path / "large").write_bytes(large)
    (tmp_path / "small").write_bytes(mlp())
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 16)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    batches = SyntheticBatches(signature, 0, 16)
    small, big = (measure_memory(tmp_path / name, batches, "auto") for name in ("small", "large"))
    assert small < 30 << 20
    assert len(large) < big < 4 * len(large)


def test_a_file_that_cannot_be_loaded_for_memory_has_no_figure(tmp_path):
    (tmp_path / "broken").write_bytes(mlp()[:-500])
    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 16)),), outputs=())
    assert measure_memory(tmp_path / "broken", SyntheticBatches(signature, 0, 16), "auto") is None


def test_sizes_are_those_of_the_file(tmp_path):
    (tmp_path / "model").write_bytes(convolutional())
    size = measure_size(tmp_path / "model", tmp_path / "model", ModelStats(parameters=7, nonzeros=6, macs=5))
    assert size.bytes == len(convolutional())
    whole = zstandard.ZstdCompressor(level=19).compress(convolutional())
    assert abs(size.zstd_bytes - len(whole)) < 64
    assert 0.5 * size.zstd_bytes < size.packed_bytes < size.zstd_bytes
    assert (size.parameters, size.nonzeros, size.macs) == (7, 6, 5)


def test_messages_name_no_folder_of_ours(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07not a model")
    with pytest.raises(InvalidModelError) as refusal:
        open_session(tmp_path / "model.onnx", 1)
    assert "ONNX Runtime cannot load this model" in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


def test_bfloat16_cannot_be_fed():
    with pytest.raises(UnsupportedModelError, match="bfloat16"):
        arrays([torch.zeros(2, dtype=torch.bfloat16)])


def test_the_environment_says_what_the_figures_depend_on():
    found = environment(torch.device("cpu"), 2, ("landlock",))
    assert found.cpu
    assert found.threads == 2
    assert found.sandbox == ("landlock",)
    assert own_runtime() in ("cpu-vnni", "cpu-avx2", "cpu-arm")
    assert ("avx2" in processor()[1]) or own_runtime() == "cpu-arm"
