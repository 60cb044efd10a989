"""Writes the graph as a packed file: the ONNX file that it would otherwise be, entropy-coded without loss."""

from __future__ import annotations

from pathlib import Path

from modelpress.packed import pack
from workers.engine.graph import Graph
from workers.engine.writers import writes
from workers.engine.writers.onnx import write_onnx_file


@writes("packed")
def write_packed(graph: Graph, path: Path) -> None:
    """Raises UnsupportedModelError where ONNX cannot hold the graph."""
    plain = path.with_name(f"{path.name}.onnx")
    try:
        write_onnx_file(graph, plain)
        pack(plain, path)
    finally:
        plain.unlink(missing_ok=True)
