"""A model file of a run: read into a graph, and the ONNX file that ONNX Runtime runs in its stead."""

from __future__ import annotations

from pathlib import Path

from modelpress.run import ModelFile
from workers.engine.graph import Graph
from workers.engine.readers import ZIP, read_model
from workers.engine.readers.packed import unpacked
from workers.engine.writers import write_model


def open_model(model: ModelFile, run_dir: Path) -> tuple[str, Graph]:
    """The format and the graph. Raises InvalidModelError or UnsupportedModelError."""
    architecture = None if model.architecture is None else run_dir / model.architecture.path
    return read_model(run_dir / model.path, architecture)


def runnable(graph: Graph, format_: str, model: ModelFile, run_dir: Path, name: str = "original") -> Path:
    """The file itself, or what is packed in it, where that is one ONNX file, else the graph's, unchanged.

    Raises EngineError where ONNX cannot hold the graph.
    """
    file = run_dir / model.path
    if is_one_onnx_file(format_, file):
        return file
    if format_ == "packed":
        return unpacked(file)
    rewritten = run_dir / f"{name}.onnx"
    write_model(graph, "onnx", rewritten)
    return rewritten


def is_one_onnx_file(format_: str, file: Path) -> bool:
    """External data comes in an archive around the ONNX file."""
    with file.open("rb") as content:
        return format_ == "onnx" and content.read(len(ZIP)) != ZIP
