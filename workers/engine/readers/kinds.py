"""What kind of model file this is, told by its content and never by its name."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path, PurePosixPath
from typing import Literal

from modelpress.packed import MAGIC as PACKED
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.zip_errors import UNREADABLE

Kind = Literal["onnx", "pt2", "torchscript", "state_dict", "safetensors", "archive", "packed"]
"""`archive`: a zip of several files, an ONNX file with its data or a Hugging Face folder."""

ZIP = b"PK\x03\x04"
TFLITE = b"TFL3"
HDF5 = b"\x89HDF"
PICKLE = b"\x80"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that torch.save began its files with before PyTorch 1.6."""


def kind_of(path: Path) -> Kind:
    """Raises InvalidModelError for empty and damaged files, UnsupportedModelError for formats that are not read."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise InvalidModelError("the file is empty")
    if head[:4] == ZIP:
        return _zipped(path)
    if head.startswith(PACKED):
        return "packed"
    if head[:4] == HDF5 or head[4:8] == TFLITE:
        raise UnsupportedModelError("Keras and TFLite files are not read: export the model to ONNX (tf2onnx does it)")
    if head[:1] == PICKLE and head[1] in range(2, 6):
        if _first_number(head) == LEGACY_MAGIC:
            return "state_dict"
        raise UnsupportedModelError(
            "this is a pickle, which can run code and is never loaded: export the model with torch.onnx.export or "
            "torch.export.save"
        )
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    return "onnx"


def _zipped(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
    except UNREADABLE as error:
        raise InvalidModelError(
            f"the zip archive is damaged ({error}): upload it again, or make it again, a .pt2 with "
            "torch.export.save(program, path)"
        ) from None
    below = {PurePosixPath(*name.parts[1:]).as_posix() for name in names}
    if "archive_format" in below or "serialized_exported_program.json" in {name.name for name in names}:
        return "pt2"
    if "constants.pkl" in below:
        return "torchscript"
    if "data.pkl" in below:
        return "state_dict"
    return "archive"


def _first_number(head: bytes) -> int | None:
    try:
        for opcode, argument, _ in pickletools.genops(head):
            if opcode.name == "LONG1" and isinstance(argument, int):
                return argument
    except (ValueError, EOFError):
        pass
    return None
