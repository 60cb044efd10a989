"""Reads packed files: the ONNX file in them, which is written beside them first."""

from __future__ import annotations

from pathlib import Path

from modelpress.packed import MAX_BYTES, PackedError, unpack
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers.kinds import kind_of

MAX_GROWTH = 200
"""A model of few values, nearly all of them zero, packs a hundred times smaller."""
ALLOWANCE = 64 << 20
"""So much may always come out."""


def unpacked(path: Path) -> Path:
    """The very ONNX file that was packed, made beside the packed one once for each that lies there.

    Raises InvalidModelError for damaged files and such as grow beyond all measure, UnsupportedModelError for other
    formats inside.
    """
    plain = path.with_name(f"{path.name}.{path.stat().st_mtime_ns}.unpacked.onnx")
    if not plain.exists():
        limit = min(MAX_BYTES, ALLOWANCE + MAX_GROWTH * path.stat().st_size)
        try:
            unpack(path, plain, max_bytes=limit)
        except PackedError as error:
            raise InvalidModelError(f"the packed file cannot be unpacked ({error}): upload it again") from error
    if kind_of(plain) != "onnx":
        raise UnsupportedModelError(
            "the packed file holds no ONNX file: unpack it (modelpress unpack) and send what is in it"
        )
    return plain
