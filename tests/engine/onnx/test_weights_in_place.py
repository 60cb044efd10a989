"""Weights are read from their place in the file and written from their place in the graph."""

import random

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from tests.engine.onnx.nets import example, export
from tests.engine.onnx.running import in_engine, in_runtime
from workers.engine.errors import EngineError
from workers.engine.readers import onnx_scan
from workers.engine.readers.onnx import read_onnx
from workers.engine.readers.onnx_scan import OWN, without_weights
from workers.engine.writers import onnx as writer
from workers.engine.writers import onnx_assembly
from workers.engine.writers.onnx import write_onnx, write_onnx_file


@pytest.fixture(scope="module")
def model() -> bytes:
    return export(*example("encoder"), "torchscript-17")


def with_weights(model: ModelProto, file: bytes) -> bytes:
    """The references of a scanned model followed."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == OWN
            start, length = int(place["offset"]), int(place["length"])
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = file[start : start + length]
    return model.SerializeToString(deterministic=True)


def test_a_scanned_model_lacks_its_large_weights_and_nothing_else(model: bytes) -> None:
    scanned = ModelProto.FromString(without_weights(memoryview(model)))
    assert scanned.ByteSize() < 0.5 * len(model)
    assert with_weights(scanned, model) == ModelProto.FromString(model).SerializeToString(deterministic=True)


def test_damaged_files_scan_to_what_protobuf_makes_of_them(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_scan, "LARGE", 64)
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(model[: generator.choice((len(model), generator.randrange(len(model))))])
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(min(len(damaged), 40_000))] = generator.randrange(256)
        try:
            whole = ModelProto.FromString(bytes(damaged))
        except Exception:  # noqa: BLE001 (what protobuf does not read, the reader refuses)
            with pytest.raises(EngineError):
                read_onnx(bytes(damaged))
            continue
        scanned = ModelProto.FromString(without_weights(memoryview(bytes(damaged))))
        assert with_weights(scanned, bytes(damaged)) == whole.SerializeToString(deterministic=True)


def test_a_file_and_its_bytes_read_the_same(model: bytes, tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    assert write_onnx(read_onnx(path)) == write_onnx(read_onnx(model))


def test_written_bytes_are_those_of_protobuf(model: bytes, tmp_path) -> None:
    written = write_onnx(read_onnx(model))
    assert onnx.load_from_string(written).SerializeToString(deterministic=True) == written
    write_onnx_file(read_onnx(model), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == written


def test_what_is_too_large_for_one_file_lies_in_two(model: bytes, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LARGEST_FILE", 50_000)
    path = tmp_path / "model.onnx"
    write_onnx_file(read_onnx(model), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    onnx.checker.check_model(str(path), full_check=True)
    stored = onnx.load(path, load_external_data=False).graph.initializer
    outside = [tensor for tensor in stored if tensor.data_location == TensorProto.EXTERNAL]
    assert outside
    for tensor in outside:
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == "model.onnx.data"
        assert int(place["offset"]) % onnx_assembly.PAGE == 0
    graph = read_onnx(path)
    x = {graph.inputs[0].name: np.arange(18).reshape(2, 9) % 50}
    (expected,) = in_runtime(model, x)
    np.testing.assert_allclose(in_runtime(str(path), x)[0], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(in_engine(graph, x)[0], expected, rtol=1e-4, atol=1e-5)
