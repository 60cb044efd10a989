"""Writes the graph as a packed file: the ONNX file that it would otherwise be, entropy-coded without loss."""

from __future__ import annotations

import filecmp
from pathlib import Path

from modelpress.packed import pack
from workers.engine.errors import UnusableResultError
from workers.engine.graph import Graph
from workers.engine.readers.packed import unpacked
from workers.engine.writers import writes
from workers.engine.writers.onnx import write_onnx_file


def check_packed(_: Graph, path: Path, as_onnx: Path) -> bool:
    """Unpacked it must be the ONNX file, byte for byte."""
    again = unpacked(path)
    same = filecmp.cmp(again, as_onnx, shallow=False)
    again.unlink()
    if not same:
        raise UnusableResultError("unpacked again, it is not the ONNX file that was packed; please report it")
    return True


@writes("packed", check_packed)
def write_packed(graph: Graph, path: Path) -> None:
    """Raises UnsupportedModelError where ONNX cannot hold the graph."""
    plain = path.with_name(f"{path.name}.onnx")
    try:
        write_onnx_file(graph, plain)
        pack(plain, path)
    finally:
        plain.unlink(missing_ok=True)
