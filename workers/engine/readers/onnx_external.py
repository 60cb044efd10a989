"""Data files beside an ONNX file. What the model says of them is hostile: every place is checked before it is read."""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from onnx import TensorProto

from workers.engine.dtypes import TORCH_OF_ONNX
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers.onnx_node import shown
from workers.engine.readers.onnx_scan import OWN, without_weights

NUMBER = re.compile(r"\d{1,18}", re.ASCII)
SHARED = 4
"""Tensors may share bytes of a file (tied weights do); together they have at most this many times what is there."""


class ExternalFiles:
    """Maps the files beside a model into memory; a model of bytes, or none, has none.

    All methods raise InvalidModelError for what an honest exporter does not write, UnsupportedModelError where files
    are missing.
    """

    def __init__(self, model: Path | bytes | None = None) -> None:
        self._folder = model.parent if isinstance(model, Path) else None
        self._own = None if model is None else _Own(model)
        self._files: dict[str, memoryview] = {}
        self._claimed = 0

    def without_weights(self) -> bytes:
        """The model, in which large weights of its own file count as lying in a data file."""
        return b"" if self._own is None else self._own.without_weights()

    def window(self, proto: TensorProto, name: str, size: int | None) -> memoryview:
        """The bytes of a tensor, not copied. `size`: how many it must have, where that is known."""
        fields: dict[str, str] = {}
        for entry in proto.external_data:
            if entry.key in fields:
                raise InvalidModelError(f"tensor {shown(name)} has {shown(entry.key)} twice in external_data")
            fields[entry.key] = entry.value
        location = fields.get("location", "")
        file = self._own if location == OWN and self._own is not None else self._open(location, name)
        offset = _number(fields.get("offset", "0"), name)
        rest = len(file) - offset
        length = _number(fields["length"], name) if "length" in fields else rest if size is None else size
        if size is not None and length != size:
            raise InvalidModelError(f"tensor {shown(name)} needs {size} bytes but has {length} in its data file")
        if rest < 0 or length > rest:
            raise InvalidModelError(
                f"tensor {shown(name)} is said to lie at {offset} to {offset + length} of a data file of {len(file)} "
                "bytes; the file may be cut off"
            )
        self._claimed += length
        if self._claimed > SHARED * sum(map(len, (*self._files.values(), self._own or b""))):
            raise InvalidModelError("the model's tensors claim more bytes than its data files hold")
        return file[offset : offset + length]

    def taken_in(self, proto: TensorProto) -> TensorProto:
        """The tensor with its bytes inside; the very same where they are inside already."""
        if proto.data_location != TensorProto.EXTERNAL:
            return proto
        dtype = TORCH_OF_ONNX.get(proto.data_type)
        content = self.window(proto, proto.name, None if dtype is None else math.prod(proto.dims) * dtype.itemsize)
        return TensorProto(name=proto.name, data_type=proto.data_type, dims=proto.dims, raw_data=bytes(content))

    def _open(self, location: str, name: str) -> memoryview:
        if location not in self._files:
            if location in ("", ".", "..") or not location.isprintable() or set(location) & {"/", "\\"}:
                raise InvalidModelError(
                    f"tensor {shown(name)} is kept in {shown(location)}; data files are only read from the folder "
                    "of the model itself"
                )
            if self._folder is None:
                raise UnsupportedModelError(_missing(location, name))
            self._files[location] = _mapped(self._folder / location, location, name)
        return self._files[location]


class _Own:
    """The file of the model. Weights are read, not mapped: few of them begin where numbers may begin in memory."""

    def __init__(self, model: Path | bytes) -> None:
        self._model = model
        self._file: BinaryIO = model.open("rb") if isinstance(model, Path) else BytesIO(model)
        self._size = self._file.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> memoryview:
        content = memoryview(bytearray(part.stop - part.start))
        self._file.seek(part.start)
        self._file.readinto(content)  # type: ignore[attr-defined]  # every file that is read in binary has it
        return content

    def without_weights(self) -> bytes:
        if isinstance(self._model, bytes) or not self._size:
            return without_weights(memoryview(self._model if isinstance(self._model, bytes) else b""))
        with mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ) as mapped:
            return without_weights(memoryview(mapped))


def _mapped(path: Path, location: str, name: str) -> memoryview:
    """Private to this process, so that tensors in it may be written to; links are not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise UnsupportedModelError(_missing(location, name)) from None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise InvalidModelError(f"{shown(location)} is not a plain file")
        if about.st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(descriptor, about.st_size, access=mmap.ACCESS_COPY))
    finally:
        os.close(descriptor)


def _missing(location: str, name: str) -> str:
    return (
        f"tensor {shown(name)} is kept in another file, {shown(location)}, which is not there: send a zip of the .onnx "
        "file and its data files, or save the model as one file (onnx.save_model(model, path, "
        "save_as_external_data=False))"
    )


def _number(text: str, name: str) -> int:
    if not NUMBER.fullmatch(text):
        raise InvalidModelError(f"tensor {shown(name)} has a place in its data file that is no number: {shown(text)}")
    return int(text)
