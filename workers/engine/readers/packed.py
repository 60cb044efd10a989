"""A packed file: the ONNX file in it, beside it, and that one's graph."""

from __future__ import annotations

from pathlib import Path

from modelpress.packed import PackedError, unpack
from workers.engine.errors import InvalidModelError
from workers.engine.graph import Graph
from workers.engine.readers.onnx import read_onnx


def unpacked(path: Path) -> Path:
    """The very file that was packed, made once. Raises InvalidModelError where the packed one is damaged."""
    target = path.with_name(f"{path.name}.unpacked.onnx")
    if not target.exists():
        try:
            unpack(path, target)
        except PackedError as error:
            raise InvalidModelError(f"the packed file cannot be unpacked ({error}): upload it again") from error
    return target


def read_packed(path: Path) -> Graph:
    """Raises InvalidModelError, and whatever reading the ONNX file in it raises."""
    return read_onnx(unpacked(path))
