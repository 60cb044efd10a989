"""A `.pt2` archive as data: JSON documents and raw tensors. Nothing in it is unpickled, evaluated or imported.

`torch.export.load` runs what it finds (pickles, shape expressions, guards, enum imports), so it never sees an upload.
Format: `torch/export/pt2_archive` and `torch/_export/serde/schema.py` of PyTorch 2.9 to 2.13, schema 8.x.
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from workers.engine.errors import InvalidModelError
from workers.engine.readers.pickle_scan import foreign_names
from workers.engine.zip_errors import UNREADABLE

MAX_MEMBERS = 100_000
MAX_JSON = 256 << 20
MAX_PICKLE = 64 << 20
LEGACY_MEMBERS = {"serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt"}

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""`ScalarType` of the schema; complex and 8-bit floats are left out."""


class Archive:
    """Members of one archive, below its root folder. Raises InvalidModelError for whatever is not as it should be."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
            members = self._zip.infolist()
        except UNREADABLE as error:
            raise InvalidModelError(
                f"The file is not a .pt2 archive ({error}). Make it with torch.export.save(program, path)."
            ) from None
        if len(members) > MAX_MEMBERS:
            raise InvalidModelError(f"The archive has {len(members)} members; at most {MAX_MEMBERS} are read.")
        if LEGACY_MEMBERS & {member.filename for member in members}:
            raise InvalidModelError(
                "The archive has the format of PyTorch 2.7 and older, which stores weights as pickles (code). "
                "Save it again with a current PyTorch: torch.export.save(program, path)."
            )
        # torch stores members without compression: more bytes out than in is a bomb
        size = path.stat().st_size
        declared = sum(member.file_size for member in members)
        if declared > size:
            raise InvalidModelError(
                f"The archive of {size} bytes claims to hold {declared} bytes; a .pt2 file is not compressed. "
                "Make it with torch.export.save(program, path)."
            )
        self._members: dict[str, zipfile.ZipInfo] = {}
        roots = set()
        for member in members:
            root, _, inner = member.filename.partition("/")
            roots.add(root)
            if inner in self._members:
                raise InvalidModelError(f"The archive holds {inner!r} twice.")
            self._members[inner] = member
        if len(roots) != 1 or "archive_format" not in self._members:
            raise InvalidModelError(
                "The zip file is no .pt2 archive: there is no archive_format in its root folder. "
                "Make it with torch.export.save(program, path)."
            )
        if self.read("archive_format", 16) != b"pt2":
            raise InvalidModelError(
                "The archive's archive_format is not pt2. Make it with torch.export.save(program, path)."
            )
        if "byteorder" in self._members and self.read("byteorder", 16) != b"little":
            raise InvalidModelError("The archive was written on a big-endian machine; export the model on another one.")

    def names(self, folder: str) -> list[str]:
        return sorted(name for name in self._members if name.startswith(folder))

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a member, at most `limit`."""
        member = self._members.get(name)
        if member is None:
            raise InvalidModelError(f"The archive lacks {name!r}. Make it with torch.export.save(program, path).")
        if member.file_size > limit:
            raise InvalidModelError(f"{name!r} has {member.file_size} bytes; at most {limit} are read.")
        try:
            return self._zip.read(member)
        except UNREADABLE as error:
            raise InvalidModelError(f"{name!r} in the archive is damaged ({error}). Upload the file again.") from None

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name, MAX_JSON))
        except (ValueError, RecursionError) as error:
            raise InvalidModelError(f"{name!r} in the archive is not sound JSON ({error}).") from None

    def model_name(self) -> str:
        names = [PurePosixPath(name).stem for name in self.names("models/") if name.endswith(".json")]
        if len(names) != 1:
            raise InvalidModelError(f"The archive holds {len(names)} models; upload a file with exactly one.")
        return names[0]

    def refuse_code(self, model: str) -> None:
        """Raise InvalidModelError where a member would run code if PyTorch loaded the file."""
        for name in (f"data/weights/{model}.pt", f"data/constants/{model}.pt"):
            if name in self._members:
                raise InvalidModelError(
                    f"{name!r} stores tensors as a pickle (code), as old versions of PyTorch did. "
                    "Save the model again with a current PyTorch: torch.export.save(program, path)."
                )
        for name in self.names("data/sample_inputs/"):
            foreign = foreign_names(self.read(name, MAX_PICKLE))
            if foreign:
                raise InvalidModelError(
                    f"{name!r} holds more than tensors: loading it would run {', '.join(sorted(foreign)[:3])}. "
                    "If that is not meant, do not load this file anywhere; else export the model with plain tensors."
                )

    def tensors(self, folder: str, config_name: str) -> dict[str, Tensor]:
        """Tensors of `data/weights/` or `data/constants/` by the user's name; those that are tied are one object."""
        config = self.json(f"data/{folder}/{config_name}")
        entries = config.get("config") if isinstance(config, dict) else None
        if not isinstance(entries, dict):
            raise InvalidModelError(f"data/{folder}/{config_name} has no config.")
        storages: dict[str, bytes] = {}
        made: dict[str, Tensor] = {}
        tensors = {}
        for name, entry in entries.items():
            if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
                raise InvalidModelError(
                    f"{name!r} is stored as a pickle (code), not as a plain tensor. Export the model with plain "
                    "tensors only: no custom objects, no tensor subclasses."
                )
            path = entry.get("path_name")
            if not isinstance(path, str) or not isinstance(entry.get("tensor_meta"), dict):
                raise InvalidModelError(f"{name!r} is not a plain tensor. Export the model without custom objects.")
            if path not in storages:
                member = self._members.get(f"data/{folder}/{path}")
                storages[path] = self.read(f"data/{folder}/{path}", member.file_size if member else 0)
            view = f"{path} {entry['tensor_meta']}"
            if view not in made:
                made[view] = strided_tensor(name, storages[path], entry["tensor_meta"])
            tensors[name] = made[view]
        return tensors


def strided_tensor(name: str, storage: bytes, meta: dict[str, Any]) -> Tensor:
    """A tensor over raw little-endian bytes. Raises InvalidModelError where it would reach outside of them."""
    dtype = DTYPES.get(meta.get("dtype", 0))
    if dtype is None:
        raise InvalidModelError(f"{name!r} has a dtype that is not supported (code {meta.get('dtype')}).")
    sizes = [_int(name, size) for size in _list(name, meta.get("sizes"))]
    strides = [_int(name, stride) for stride in _list(name, meta.get("strides"))]
    offset = _int(name, meta.get("storage_offset"))
    if len(sizes) != len(strides):
        raise InvalidModelError(f"{name!r} has {len(sizes)} sizes and {len(strides)} strides.")
    if 0 in sizes:
        return torch.zeros(sizes, dtype=dtype)
    elements = len(storage) // dtype.itemsize
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if last >= elements or math.prod(sizes) > elements:
        raise InvalidModelError(
            f"{name!r} of shape {sizes} does not fit into its {len(storage)} bytes. "
            "The file is damaged: upload it again."
        )
    flat = torch.frombuffer(bytearray(storage), dtype=dtype, count=elements)
    return torch.as_strided(flat, sizes, strides, offset)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidModelError(f"{name!r} has no sound shape.")
    return value


def _int(name: str, value: Any) -> int:
    number = value.get("as_int") if isinstance(value, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 48:
        raise InvalidModelError(f"{name!r} has a size that is not a plain number: {str(value)[:80]}.")
    return number
