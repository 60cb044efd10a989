"""`.npz`, without pickle and without trust: headers are checked against the archive before anything is unpacked."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from workers.engine.data.dataset import MAX_ARRAYS, MAX_BYTES, MAX_FACTOR, Arrays
from workers.engine.errors import InvalidDataError
from workers.engine.zip_errors import DAMAGED

IN_MEMORY = 16 << 20
"""Larger arrays that are compressed unfold into a scratch file, so that the system may page them out."""
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def read_npz(path: Path, scratch: Path) -> Arrays:
    """Raises InvalidDataError for objects, damage, and archives that promise more than they can hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check(members, path.stat().st_size)
            return {member.filename.removesuffix(".npy"): _read(archive, member, scratch) for member in members}
    except DAMAGED as error:
        raise InvalidDataError(f"the .npz file is damaged: {error}") from error


def _check(members: list[zipfile.ZipInfo], size: int) -> None:
    if len(members) > MAX_ARRAYS:
        raise InvalidDataError(f"the .npz file holds {len(members)} members; at most {MAX_ARRAYS} are allowed")
    names = [member.filename for member in members]
    for name in names:
        if not name.endswith(".npy"):
            raise InvalidDataError(f"the .npz file holds {name[:80]!r}, which is no array: save with numpy.savez")
        if names.count(name) > 1:
            raise InvalidDataError(f"the .npz file holds {name[:80]!r} twice")
    if any(member.compress_type not in METHODS or member.flag_bits & 1 for member in members):
        raise InvalidDataError(
            "the .npz file is encrypted or packed in an unusual way: save with numpy.savez_compressed"
        )
    promised = sum(member.file_size for member in members)
    if promised > min(MAX_BYTES, size * MAX_FACTOR):
        raise InvalidDataError(
            f"the .npz file of {size} bytes would unpack to {promised} bytes, which is more than is allowed: "
            "use fewer examples"
        )


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, scratch: Path) -> NDArray:
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream, member.filename)
        length = int(np.prod([int(size) for size in shape], dtype=object)) * dtype.itemsize
        if stream.tell() + length != member.file_size:
            raise InvalidDataError(f"the array {member.filename!r} is damaged: its header says {length} bytes")
        order: Literal["F", "C"] = "F" if fortran else "C"
        if length <= IN_MEMORY:
            return np.frombuffer(stream.read(), dtype).reshape(shape, order=order)
        with tempfile.TemporaryFile(dir=scratch) as file:
            shutil.copyfileobj(stream, file, 1 << 20)
            return np.memmap(file, dtype, "r", 0, shape, order)


def _header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise InvalidDataError(f"the array {name!r} has version {version} of the .npy format; 1.0 and 2.0 are read")
    except (ValueError, SyntaxError, TypeError) as error:
        raise InvalidDataError(f"the array {name!r} is damaged: {error}") from error
    if dtype.hasobject:
        raise InvalidDataError(
            f"the array {name!r} holds pickled Python objects, which are never unpickled here: save with numpy.savez "
            "without objects, as arrays of numbers of one shape"
        )
    if dtype.fields is not None or dtype.subdtype is not None or dtype.itemsize == 0:
        raise InvalidDataError(f"the array {name!r} holds records ({dtype}): save each field as an array of its own")
    if any(size < 0 for size in shape):
        raise InvalidDataError(f"the array {name!r} is damaged: its shape is {shape}")
    return shape, fortran, dtype
