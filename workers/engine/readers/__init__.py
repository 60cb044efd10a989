"""Ways in: each reader turns one file format, all of it hostile input, into the one representation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workers.engine.errors import InvalidModelError, UnsupportedModelError

if TYPE_CHECKING:
    from workers.engine.graph import Graph

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
TFLITE = b"TFL3"
HDF5 = b"\x89HDF"


def read_model(path: Path, architecture: Path | None = None) -> tuple[str, Graph]:
    """The format, told by content and never by name, and the graph.

    `architecture` is another model's file, for files that hold weights alone.

    Raises InvalidModelError or UnsupportedModelError with what is wrong and what to do.
    """
    format_, graph = _read(path)
    if not graph.inputs:
        raise UnsupportedModelError("the model has no inputs: there is nothing to run it on, or to compress it for")
    return format_, graph


def _read(path: Path) -> tuple[str, Graph]:
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise InvalidModelError("the file is empty")
    if head[:4] == ZIP:
        from workers.engine.readers.pt2 import read_pt2  # noqa: PLC0415 (each format loads only what it needs)

        return "pt2", read_pt2(path)
    if head[:4] == HDF5 or head[4:8] == TFLITE:
        raise UnsupportedModelError("Keras and TFLite files are not read: export the model to ONNX (tf2onnx does it)")
    if head[:1] == PICKLE and head[1:2] in b"\x02\x03\x04\x05":
        raise UnsupportedModelError(
            "this is a pickle, which can run code and is never loaded: export the model with torch.onnx.export or "
            "torch.export.save"
        )
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        raise UnsupportedModelError(
            "safetensors hold weights without an architecture: export the model with torch.onnx.export or "
            "torch.export.save"
        )
    from workers.engine.readers.onnx import read_onnx  # noqa: PLC0415 (as above)

    return "onnx", read_onnx(path)
