"""Every model of the zoo × reading, writing, pruning half of the units, packing. Each cell is a figure or a reason.

    python -m benchmarks.matrix CACHE [--data FOLDER] [--only NAME ...]

read    seconds, and what was left opaque
write   largest difference to ONNX Runtime's answers for the original, and bytes written / bytes of the original
prune   channel_pruning 50 %: parameters before / after; the pruned file runs in ONNX Runtime at another batch size
pack    bytes of the ONNX file / bytes of the packed one

Every model has a process of its own. Exit code 1 where one crashes, or does nothing without saying why.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.zoo import Entry, zoo

if TYPE_CHECKING:  # imported only in the child, so that the parent stays small
    from torch import Tensor

    from workers.engine.graph import Graph
    from workers.engine.runtime import Session

TOLERANCE = 1e-5
COLUMNS = ("read", "write", "prune", "pack")


@dataclass
class Row:
    cells: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def examine(path: Path) -> Row:
    """One model, in its own process. What the engine refuses is a reason; anything else that is raised is a crash."""
    import torch  # noqa: PLC0415 (only in the child, so that the parent stays small)

    from workers.engine.errors import EngineError  # noqa: PLC0415

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    row = Row()
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(path, Path(folder))
        for name in COLUMNS:
            stage: Callable[[], tuple[str, bool]] = getattr(bench, name)
            try:
                row.cells[name], good = stage()
                if not good:
                    row.failed.append(name)
            except EngineError as reason:
                row.cells[name] = str(reason)
            except Exception as error:  # noqa: BLE001 (a crash is what this looks for)
                row.cells[name] = f"CRASH {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                row.failed.append(name)
                traceback.print_exc()
            if name == "read" and bench.graph is None:
                break
    return row


class _Bench:
    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.graph = None
        self.written = folder / "written.onnx"

    def read(self) -> tuple[str, bool]:
        from workers.engine.readers import read_model  # noqa: PLC0415

        began = time.perf_counter()
        _, self.graph = read_model(self.path)
        seconds = time.perf_counter() - began
        layers = sum(1 for _ in self.graph.layers())
        return " ".join((f"{seconds:.2f} s, {layers} layers", *self.graph.notes)), layers > 0

    def write(self) -> tuple[str, bool]:
        from workers.engine.inspection import differences  # noqa: PLC0415
        from workers.engine.runtime import arrays, open_session  # noqa: PLC0415
        from workers.engine.shapes import example_inputs  # noqa: PLC0415
        from workers.engine.writers import write_model  # noqa: PLC0415

        write_model(self.graph, "onnx", self.written)
        session = open_session(self.written, 1)
        onnx = self.path.suffix == ".onnx"
        reference = open_session(self.path, 1) if onnx else None
        inputs, free = runnable(self.graph, session)
        answers = session.run(arrays(inputs))
        expected = reference.run(arrays(inputs)) if reference else None
        worst = max(differences(self.graph, inputs, answers).values())
        if expected is not None:
            worst = max(worst, *map(_relative, answers, expected))
        ratio = self.written.stat().st_size / self.path.stat().st_size
        other = session.run(arrays(example_inputs(self.graph, session.batch or 5, free)))
        fine = worst <= TOLERANCE and all(np.isfinite(a).all() for a in other if a.dtype.kind == "f")
        return f"{worst:.0e}, {ratio:.3f}×", fine

    def prune(self) -> tuple[str, bool]:
        from benchmarks.applying import apply_steps  # noqa: PLC0415
        from workers.engine.runtime import arrays, open_session  # noqa: PLC0415
        from workers.engine.shapes import stats  # noqa: PLC0415
        from workers.engine.writers import write_model  # noqa: PLC0415

        before = stats(self.graph).parameters
        pruned, notes = apply_steps(self.graph, [{"step": "channel_pruning", "ratio": 0.5}])
        after = stats(pruned).parameters
        target = self.folder / "pruned.onnx"
        write_model(pruned, "onnx", target)
        session = open_session(target, 1)
        inputs, _ = runnable(pruned, session, batch=5)
        answers = session.run(arrays(inputs))
        finite = all(np.isfinite(a).all() for a in answers if a.dtype.kind == "f")
        kinds = ("channels:", "neurons:", "heads:", "hidden units:")
        what = "; ".join(note for note in notes if note.startswith(kinds))
        return f"{before:,} → {after:,}; {_short(what)}", after < before and finite

    def pack(self) -> tuple[str, bool]:
        from modelpress.packed import pack, unpack  # noqa: PLC0415

        packed, back = self.folder / "packed", self.folder / "back.onnx"
        pack(self.written, packed)
        unpack(packed, back)
        same = back.read_bytes() == self.written.read_bytes()
        return f"{self.written.stat().st_size / packed.stat().st_size:.3f}×", same


def runnable(graph: Graph, session: Session, batch: int = 2) -> tuple[tuple[Tensor, ...], int]:
    """Made-up inputs that this session takes, and the size of their open dimensions."""
    from workers.engine.errors import InvalidModelError  # noqa: PLC0415
    from workers.engine.runtime import arrays  # noqa: PLC0415
    from workers.engine.shapes import FREE_SIZES, example_inputs  # noqa: PLC0415

    refusal: InvalidModelError | None = None
    for free in FREE_SIZES:
        inputs = example_inputs(graph, session.batch or batch, free)
        try:
            session.run(arrays(inputs))
        except InvalidModelError as error:
            refusal = error
        else:
            return inputs, free
    raise refusal or InvalidModelError("no inputs fit")


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _relative(own: np.ndarray, other: np.ndarray) -> float:
    if own.shape != other.shape:
        return math.inf
    scale = float(np.abs(other).max()) if other.size else 0.0
    return float(np.abs(own.astype(np.float64) - other.astype(np.float64)).max()) / max(scale, 1e-12) if own.size else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    entries = [e for e in zoo(arguments.cache, arguments.data).values() if e.name in (arguments.only or {e.name})]
    table, failed = Table("model", *COLUMNS, show_lines=True), []
    for entry in entries:
        row = _alone(entry)
        table.add_row(entry.name, *(row.cells.get(name, "–") for name in COLUMNS))
        failed += [f"{entry.name}: {name}" for name in row.failed]
        print(entry.name, row.cells, flush=True, file=sys.stderr)
    Console(width=200).print(table)
    print(f"{len(entries)} models, {len(failed)} failed cells", *failed, sep="\n  ")
    sys.exit(bool(failed))


def _alone(entry: Entry) -> Row:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(examine, entry.path()).result()
        except BrokenProcessPool:
            return Row({"read": "the process died"}, list(COLUMNS))


if __name__ == "__main__":
    main()
