"""Bad input over HTTP, read by a real worker: each a 4xx problem or a rejected upload, and the next job runs."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from modelpress import Client, ModelpressError
from modelpress.client import Dataset, Model
from tests.attacks.programs import PROBES, sound_program, write
from tests.service_process import EXAMPLE

LENET = EXAMPLE / "lenet5.onnx"
DETAIL = 25
"""Letters of the shortest sentence that can say what is wrong and what to do."""


def rejection(client: Client, upload: Model | Dataset) -> str:
    """The code and the sentence with which the worker rejects an upload."""
    with pytest.raises(ModelpressError) as rejected:
        client.wait(upload, timeout=60)
    again = client.get_model(upload.id) if isinstance(upload, Model) else client.get_dataset(upload.id)
    assert again.status == "rejected"
    assert len(rejected.value.detail) > DETAIL
    return f"{rejected.value.code}: {rejected.value.detail}"


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(50_000))


def truncated(path: Path) -> None:
    path.write_bytes(LENET.read_bytes()[:100_000])


def nan_weights(path: Path) -> None:
    model = onnx.load(LENET)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def unknown_op(path: Path) -> None:
    model = onnx.load(LENET)
    model.graph.node[1].op_type = "Levitate"
    onnx.save(model, path)


def pickled_module(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


@pytest.mark.parametrize("spoil", [random_bytes, truncated, nan_weights, unknown_op, pickled_module])
def test_a_bad_model_is_rejected_with_a_sentence(client: Client, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "model.onnx"
    spoil(path)
    model = client.upload_model(path)
    assert rejection(client, model).startswith(("invalid_model", "unsupported_model"))
    with pytest.raises(ModelpressError) as refused:
        client.create_job(model.id, [{"step": "half_precision"}])
    assert refused.value.status == 409


@pytest.mark.parametrize("probe", PROBES)
def test_a_program_with_code_in_it_is_rejected(client: Client, tmp_path: Path, probe: str) -> None:
    members = sound_program()
    PROBES[probe](members, tmp_path / "canary")
    said = rejection(client, client.upload_model(write(tmp_path / "model.pt2", members)))
    assert said.startswith(("invalid_model", "unsupported_model"))
    assert not (tmp_path / "canary").exists()


def pickled_objects(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}, None], dtype=object))


def not_a_number(path: Path) -> None:
    np.savez(path, x=np.full((4, 1, 28, 28), np.nan, np.float32))


def different_lengths(path: Path) -> None:
    np.savez(path, x=np.zeros((4, 1, 28, 28), np.float32), labels=np.zeros(5, np.int64))


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = (
            b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2147483648, 64), }".ljust(117)
        )
        archive.writestr("x.npy", header + b"\n" + bytes(50_000_000))


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"x": [1, 2, 3]}))


@pytest.mark.parametrize("spoil", [pickled_objects, not_a_number, different_lengths, bomb, plain_pickle, random_bytes])
def test_bad_data_is_rejected_with_a_sentence(client: Client, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "data.npz"
    spoil(path)
    assert rejection(client, client.upload_dataset(path)).startswith("invalid_data")


QUANTIZE = [{"step": "static_quantization"}]
GOOD = np.zeros((8, 1, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("arrays", "recipe", "pointer", "words"),
    [
        ({"images": GOOD, "more": GOOD}, QUANTIZE, "/data/calibrate", "x"),
        ({"x": np.zeros((8, 1, 32, 32), np.float32)}, QUANTIZE, "/data/calibrate", "28"),
        ({"x": np.zeros((8, 784), np.float32)}, QUANTIZE, "/data/calibrate", "28"),
        ({"x": np.zeros((8, 1, 28, 28), np.uint8)}, QUANTIZE, "/data/calibrate", "float"),
        ({"x": GOOD}, [{"step": "static_quantisation"}], "/recipe/0", "static_quantization"),
        ({"x": GOOD}, [{"step": "static_quantization", "bits": 3}], "/recipe/0/bits", ""),
        ({"x": GOOD}, [{"step": "half_precision"}, {"step": "half_precision"}], "/recipe/1/step", "after"),
        ({"x": GOOD}, [{"step": "magnitude_pruning", "sparsity": 1.5}], "/recipe/0/sparsity", "1"),
        ({"x": GOOD}, [{"step": "fine_tuning"}], "/recipe/0", "data.train"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_work_is_refused_at_once(
    client: Client, lenet: Model, tmp_path: Path, arrays: dict, recipe: list, pointer: str, words: str
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    data = client.wait(client.upload_dataset(tmp_path / "data.npz"), timeout=60)
    assert data.status == "ready"
    with pytest.raises(ModelpressError) as refused:
        client.create_job(lenet.id, recipe, data={"calibrate": data.id})
    assert refused.value.status == 422
    pointers = {error["pointer"]: error["detail"] for error in refused.value.errors}
    assert any(found.startswith(pointer) and words in detail for found, detail in pointers.items()), pointers


def test_labels_out_of_range_are_refused(client: Client, lenet: Model, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=GOOD, labels=np.array([0, 1, 2, 3, 4, 5, 6, 10]))
    data = client.wait(client.upload_dataset(tmp_path / "data.npz"), timeout=60)
    with pytest.raises(ModelpressError) as refused:
        client.create_job(lenet.id, [{"step": "half_precision"}], data={"evaluate": data.id})
    assert refused.value.status == 422
    assert "10" in str(refused.value)
