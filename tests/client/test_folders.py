"""A folder as the one file that is sent."""

import zipfile
from pathlib import Path

import pytest

from modelpress import ModelpressError
from modelpress.client.folders import zip_folder

HUB = ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin", "tf_model.h5", ".gitattributes")


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text(f"the content of {name}")
    return path


def names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def test_the_same_folder_is_the_same_archive_wherever_it_lies(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "a", *HUB), folder(tmp_path / "b", *reversed(HUB))
    zip_folder(one, tmp_path / "a.zip")
    zip_folder(other, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_files_are_stored_as_they_are(tmp_path: Path) -> None:
    zip_folder(folder(tmp_path / "net", "config.json", "model.safetensors"), tmp_path / "net.zip")
    with zipfile.ZipFile(tmp_path / "net.zip") as archive:
        assert archive.testzip() is None
        assert archive.read("model.safetensors") == b"the content of model.safetensors"
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_weights_are_sent_once(tmp_path: Path) -> None:
    zip_folder(folder(tmp_path / "all", *HUB), tmp_path / "all.zip")
    zip_folder(folder(tmp_path / "old", "config.json", "pytorch_model.bin"), tmp_path / "old.zip")
    assert names(tmp_path / "all.zip") == {"config.json", "model.safetensors", "tokenizer.json"}
    assert names(tmp_path / "old.zip") == {"config.json", "pytorch_model.bin"}


def test_a_hub_cache_of_links_is_sent_as_what_they_lead_to(tmp_path: Path) -> None:
    blobs = folder(tmp_path / "blobs", "0a1b", "2c3d")
    snapshot = folder(tmp_path / "snapshot")
    (snapshot / "config.json").symlink_to(blobs / "0a1b")
    (snapshot / "model.safetensors").symlink_to(blobs / "2c3d")
    (snapshot / "1_Pooling").mkdir()
    zip_folder(snapshot, tmp_path / "net.zip")
    with zipfile.ZipFile(tmp_path / "net.zip") as archive:
        assert archive.read("model.safetensors") == b"the content of 2c3d"
    assert names(tmp_path / "net.zip") == {"config.json", "model.safetensors"}


def test_an_onnx_file_goes_with_the_data_beside_it(tmp_path: Path) -> None:
    zip_folder(folder(tmp_path / "net", "net.onnx", "net.onnx.data", "layer1.weight"), tmp_path / "net.zip")
    assert names(tmp_path / "net.zip") == {"net.onnx", "net.onnx.data", "layer1.weight"}


def test_a_folder_without_a_model_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ModelpressError, match="neither a config"):
        zip_folder(folder(tmp_path / "photos", "a.png"), tmp_path / "photos.zip")
    assert not (tmp_path / "photos.zip").exists()
