"""Ways out: each writer turns the one representation into one file. A format is one module here, bound by `@writes`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelpress.jobs import Format
from workers.engine.graph import Graph

Write = Callable[[Graph, Path], None]
Check = Callable[[Graph, Path, Path], bool]
"""On the graph, its file in the format, and its ONNX file. Raises UnusableResultError where the file is not the graph.

False: the readers read this file, and it is to be compared by its answers.
"""


@dataclass(frozen=True)
class Writer:
    write: Write
    check: Check | None


WRITERS: dict[Format, Writer] = {}


def writes(format_: Format, check: Check | None = None) -> Callable[[Write], Write]:
    """Bind a function `(graph, path)`, which raises EngineError where the format cannot hold the graph.

    `check` is how a result is told to be whole for formats that the readers do not read.
    """

    def bind(function: Write) -> Write:
        WRITERS[format_] = Writer(function, check)
        return function

    return bind


def writer_of(format_: Format) -> Writer:
    importlib.import_module(f"workers.engine.writers.{format_}")
    return WRITERS[format_]


def write_model(graph: Graph, format_: Format, path: Path) -> None:
    """Write the graph to a new file at the path.

    Raises UnsupportedModelError where the format cannot hold this graph, with the reason and a way out.
    """
    writer_of(format_).write(graph, path)
