"""Ways out: each writer turns the one representation into one file. A format is one module here, bound by `@writes`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from modelpress.jobs import Format
from workers.engine.graph import Graph

Write = Callable[[Graph, Path], None]

WRITERS: dict[Format, Write] = {}


def writes(format_: Format) -> Callable[[Write], Write]:
    """Bind a function `(graph, path)`, which raises EngineError where the format cannot hold the graph."""

    def bind(function: Write) -> Write:
        WRITERS[format_] = function
        return function

    return bind


def write_model(graph: Graph, format_: Format, path: Path) -> None:
    """Write the graph to a new file at the path.

    Raises UnsupportedModelError where the format cannot hold this graph, with the reason and a way out.
    """
    importlib.import_module(f"workers.engine.writers.{format_}")
    WRITERS[format_](graph, path)
