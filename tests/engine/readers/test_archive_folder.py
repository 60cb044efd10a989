"""Models of several files come zipped; archives made to do harm are refused in words and leave nothing behind."""

import shutil
import stat
import struct
import zipfile
from types import SimpleNamespace

import pytest

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers.archive_folder import onnx_file, unpack


def archive(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


@pytest.mark.parametrize("root", ["", "model/"])
def test_files_lie_in_one_folder(tmp_path, root):
    wanted = {"model.onnx": b"graph", "weights.bin": b"1234"}
    files = {f"{root}{name}": content for name, content in wanted.items()}
    folder = unpack(archive(tmp_path / "upload", {**files, f"{root}.gitattributes": b"", "__MACOSX/x": b""}))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == wanted
    assert onnx_file(folder) == folder / "model.onnx"
    assert unpack(tmp_path / "upload") == folder


def test_another_archive_in_its_place_is_unpacked_anew(tmp_path):
    unpack(archive(tmp_path / "upload", {"model.onnx": b"old"}))
    folder = unpack(archive(tmp_path / "upload", {"model.onnx": b"new"}))
    assert (folder / "model.onnx").read_bytes() == b"new"


def test_what_lies_deeper_stays_away(tmp_path):
    files = {"bert/config.json": b"{}", "bert/onnx/model.onnx": b"graph", "bert/1_Pooling/config.json": b"[]"}
    folder = unpack(archive(tmp_path / "upload", files))
    assert [file.read_bytes() for file in folder.iterdir()] == [b"{}"]
    assert onnx_file(folder) is None


def test_no_archive_fills_the_disk(tmp_path, monkeypatch):
    path = archive(tmp_path / "upload", {"model.onnx": b"graph"})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    with pytest.raises(OSError, match="no room"):
        unpack(path)
    assert list(tmp_path.iterdir()) == [path]


def test_two_models_in_one_archive(tmp_path):
    folder = unpack(archive(tmp_path / "upload", {"a.onnx": b"", "b.onnx": b""}))
    with pytest.raises(UnsupportedModelError, match="2 ONNX files"):
        onnx_file(folder)


def linked(path):
    entry = zipfile.ZipInfo("weights.bin")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(entry, "/etc/passwd")


def lying(path):
    """The central directory declares fewer bytes than come out."""
    archive(path, {"a": bytes(1000)})
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 10)
    path.write_bytes(content)


def cut(path):
    path.write_bytes(archive(path, {"a": bytes(1000)}).read_bytes()[:-10])


def damaged(path):
    content = bytearray(archive(path, {"a": b"content"}, zipfile.ZIP_STORED).read_bytes())
    content[content.index(b"content")] ^= 1
    path.write_bytes(content)


def twice(path):
    content = archive(path, {"first": b"1", "other": b"2"}).read_bytes()
    path.write_bytes(content.replace(b"other", b"first"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: archive(path, {"../../escaped": b"x"}), "unsafe name"),
        (lambda path: archive(path, {"/etc/passwd": b"x"}), "unsafe name"),
        (lambda path: archive(path, {"a\\b": b"x"}), "unsafe name"),
        (lambda path: archive(path, {"a\nb": b"x"}), "unsafe name"),
        (lambda path: archive(path, {"a" * 300: b"x"}), "too long"),
        (lambda path: archive(path, {"a/x": b"", "b/x": b""}), "several folders"),
        (lambda path: archive(path, {}), "no files"),
        (lambda path: archive(path, {"bomb": bytes(200 << 20)}), "claims to hold"),
        (lambda path: archive(path, {f"{n}": b"" for n in range(20_001)}), "20001 entries"),
        (linked, "a link or a device"),
        (lying, "damaged"),
        (cut, "damaged"),
        (damaged, "damaged"),
        (twice, "twice"),
    ],
)
def test_archives_made_to_do_harm(tmp_path, make, sentence):
    path = tmp_path / "in" / "upload"
    path.parent.mkdir()
    make(path)
    with pytest.raises(InvalidModelError, match=sentence):
        unpack(path)
    assert [file.name for file in tmp_path.rglob("*") if file != path.parent] == ["upload"]
