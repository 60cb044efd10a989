"""What goes wrong ends as an error with a sentence, and never as a traceback for the user."""

import errno
import json
import pickle
import time

import numpy as np
import onnx
import pytest
import torch

from modelpress.run import RunResult
from tests.engine.pipeline.models import blobs, compress, inspect_dataset, inspect_model, mlp, run_dir
from workers.engine import originals
from workers.engine.errors import InvalidModelError
from workers.engine.inspection import check_reading
from workers.engine.pipeline import run
from workers.engine.readers import read_model
from workers.engine.runtime import open_session

HALF = [{"step": "half_precision"}]


def with_nan():
    model = onnx.load_from_string(mlp())
    tensor = model.graph.initializer[2]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: b"", "empty"),
        (lambda: np.random.default_rng(0).bytes(5000), ""),
        (lambda: mlp()[:-700], ""),
        (lambda: mlp()[: len(mlp()) // 3], ""),
        (with_nan, "layer2.*NaN"),
        (lambda: pickle.dumps({"a": 1}), "pickle"),
        (lambda: (2).to_bytes(8, "little") + b"{}", "send it with `architecture`"),
        (lambda: b"PK\x03\x04" + b"0" * 100, ""),
        (lambda: b"\x89HDF\r\n\x1a\n" + b"0" * 100, "Keras"),
    ],
)
def test_files_that_are_no_usable_model(tmp_path, content, sentence):
    result = inspect_model(tmp_path / "run", content())
    assert result.model is None
    assert result.error.code in ("invalid_model", "unsupported_model")
    assert not result.error.retryable
    assert str(tmp_path) not in result.error.message
    import re

    assert re.search(sentence, result.error.message), result.error.message


def test_a_good_model_is_described(tmp_path):
    spec = inspect_model(tmp_path / "run", mlp()).model
    assert spec.format == "onnx"
    assert [(i.name, i.dtype, i.shape) for i in spec.signature.inputs] == [("x", "float32", ("batch", 16))]
    assert spec.stats.parameters == 16 * 96 + 96 + 96 * 96 + 96 + 96 * 4 + 4
    assert spec.stats.macs == 16 * 96 + 96 * 96 + 96 * 4
    assert spec.stats.layers == 3


def test_datasets_are_described_or_refused(tmp_path):
    x, labels = blobs(10, 0)
    assert inspect_dataset(tmp_path / "a", {"x": x, "labels": labels}).dataset.examples == 10
    assert inspect_dataset(tmp_path / "b", b"nothing").error.code == "invalid_data"


def test_a_reader_that_errs_is_noticed(tmp_path):
    (tmp_path / "model").write_bytes(mlp())
    _, graph = read_model(tmp_path / "model")
    session = open_session(tmp_path / "model", 1)
    assert check_reading(graph, session) is not None

    with torch.no_grad():
        next(graph.layers()).module.weight[:, 0] += 1  # type: ignore[operator]
    with pytest.raises(InvalidModelError, match="read wrongly"):
        check_reading(graph, session)


@pytest.mark.parametrize(
    ("request_", "data", "code", "sentence"),
    [
        ({}, {"evaluate": {"x": np.zeros((5, 15), np.float32)}}, "invalid_data", r"\(5, 15\)"),
        ({}, {"evaluate": {"x": np.zeros((5, 16), np.uint8)}}, "invalid_data", "normalise"),
        ({}, {"evaluate": {"a": np.zeros((5, 16)), "b": np.zeros((5, 16))}}, "invalid_data", "no array for"),
        ({}, {"evaluate": {"x": np.zeros((5, 16)), "y": np.arange(5)}}, "invalid_data", "go up to 4"),
        ({}, {"evaluate": {"x": np.zeros((5, 16)), "y": np.arange(5) - 1}}, "invalid_data", "counted from 0"),
        ({}, {"evaluate": {"x": np.full((5, 16), np.nan)}}, "invalid_data", "NaN"),
        ({"task": {"output": 3}}, {}, "invalid_data", "output"),
        ({"task": {"metric": "mse"}}, {"evaluate": {"x": np.zeros((4, 16)), "y": np.arange(4)}}, "invalid_data", "mse"),
        ({"recipe": [{"step": "fine_tuning"}]}, {}, "step_failed", "training data"),
        ({"recipe": [{"step": "fine_tuning"}]}, {"train": {"x": np.zeros((5, 16))}}, "step_failed", "labels"),
        ({"recipe": [*HALF, {"step": "magnitude_pruning"}]}, {}, "step_failed", "cannot come after"),
        ({"budget": {"seconds": 1e-6}}, {}, "deadline_exceeded", "time budget"),
    ],
)
def test_jobs_that_cannot_be_done(tmp_path, request_, data, code, sentence):
    result, _ = compress(tmp_path / "run", mlp(), **{"recipe": HALF, **request_}, data=data)
    import re

    assert result.error is not None
    assert result.error.code == code, result.error
    assert re.search(sentence, result.error.message), result.error.message
    assert result.files == ()
    stored = RunResult.model_validate_json((tmp_path / "run/out/result.json").read_text())
    assert stored.error == result.error


def test_training_stops_at_the_deadline(tmp_path):
    began = time.monotonic()
    recipe = [{"step": "distillation", "epochs": 1000}]
    result, _ = compress(tmp_path / "run", mlp(), recipe, data={"train": blobs(2000, 0)[0]}, budget={"seconds": 1.0})
    assert time.monotonic() - began < 20
    assert result.error is None or result.error.code == "deadline_exceeded"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (RuntimeError("std::bad_alloc"), "out_of_memory"),
        (OSError(errno.EFBIG, "File too large"), "too_large"),
        (OSError(errno.ENOSPC, "No space left on device"), "out_of_disk"),
        (ZeroDivisionError("secret detail"), "internal_error"),
    ],
)
def test_the_unforeseen_goes_to_the_log_and_not_to_the_user(tmp_path, monkeypatch, caplog, raised, code):
    def fail(*args):
        raise raised

    monkeypatch.setattr(originals, "read_model", fail)
    result, _ = compress(tmp_path / "run", mlp(), HALF)
    assert result.error.code == code
    assert "secret" not in result.error.message
    assert "Traceback" in caplog.text
    if code == "internal_error":
        assert result.error.message.split()[-1] in caplog.text
    if code == "out_of_memory":
        assert result.peak_memory_bytes > 1 << 20
        assert "MiB" in result.error.message
        assert "calibration examples" in result.error.message


def test_memory_that_an_upload_lacks_is_not_blamed_on_a_compression(tmp_path, monkeypatch):
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(originals, "read_model", fail)
    error = inspect_model(tmp_path / "run", mlp()).error
    assert error.code == "out_of_memory"
    assert "upload a smaller model" in error.message
    assert "calibration" not in error.message


def test_a_job_that_is_none(tmp_path):
    folder = run_dir(tmp_path / "run", {})
    (folder / "job.json").write_text(json.dumps({"kind": "dance"}))
    assert run(folder, print).error.code == "invalid_run"
