"""Reading and writing with no step between, on every model of the zoo: what comes out is what went in.

    python -m benchmarks.round_trip CACHE [--data FOLDER] [--only NAME ...] [--rounds N]

read, write   seconds on one core
size          bytes written / bytes read
memory        peak of resident memory above that after the imports / bytes of the file; of files above 20 MB
outputs       largest difference to ONNX Runtime's answers for the original, relative to the largest answer
latency       ONNX Runtime's time for the written file / for the original: paired and interleaved in one process, one
              thread; median of N rounds with fresh sessions, and their range
names         of weights (float initializers of two and more dimensions) and of nodes that are kept

Inputs, outputs, their dimensions, types and order, and the metadata must be the same. Models that are no ONNX files
have no latency and no names, and their outputs are compared with those of the graph in the engine. `resnet50-made` is
the structure from the `onnx` package with random weights. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks.zoo import zoo

OUTPUTS, LATENCY, SIZE, MEMORY = 1e-5, 1.03, 1.02, 3.0
SECONDS = {"minilm": (3.0, 2.0), "minilm-legacy": (3.0, 2.0)}
"""Bars for reading and writing."""
LARGE = 20_000_000
"""Bytes from which on a file says something about memory."""


@dataclass
class Trip:
    """What is known of one model."""

    read: float = 0.0
    write: float = 0.0
    size: float = 0.0
    memory: float | None = None
    outputs: float = float("inf")
    latency: list[float] = field(default_factory=list)
    names: str = "–"
    missed: list[str] = field(default_factory=list)


def travel(name: str, path: Path, written: Path) -> Trip:
    """Read and write, in a process of its own that has done nothing else."""
    import torch  # noqa: PLC0415 (only in the child, so that the parent stays small)

    from workers.engine import pipeline  # noqa: PLC0415
    from workers.engine.readers import read_model  # noqa: PLC0415
    from workers.engine.writers.onnx import write_onnx_file  # noqa: PLC0415

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    pipeline.preload()
    before = _resident(reset=True)
    start = time.perf_counter()
    _, graph = read_model(path)
    middle = time.perf_counter()
    write_onnx_file(graph, written)
    end = time.perf_counter()
    bytes_read = path.stat().st_size
    trip = Trip(read=middle - start, write=end - middle, size=written.stat().st_size / bytes_read)
    if bytes_read >= LARGE:
        trip.memory = (_resident(reset=False) - before) / bytes_read
    read_bar, write_bar = SECONDS.get(name, (float("inf"), float("inf")))
    if path.suffix == ".onnx":
        figures = {"read": trip.read, "write": trip.write, "memory": trip.memory or 0, "size": trip.size}
        bars = {"read": read_bar, "write": write_bar, "memory": MEMORY, "size": SIZE}
        trip.missed += [what for what, figure in figures.items() if figure > bars[what]]
    return trip


def _resident(*, reset: bool) -> int:
    """Bytes of this process: those of now, from which the peak is counted anew, or the peak since then."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = "VmRSS" if reset else "VmHWM"
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in status if row.startswith(line))


def compare(path: Path, written: Path, trip: Trip, rounds: int) -> Trip:
    """Outputs, names and latency, in another process."""
    import torch  # noqa: PLC0415 (as above)

    from benchmarks.matrix import runnable  # noqa: PLC0415
    from workers.engine.measuring.latency import measure_latency  # noqa: PLC0415
    from workers.engine.readers import read_model  # noqa: PLC0415
    from workers.engine.runtime import arrays, open_session  # noqa: PLC0415

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    _, graph = read_model(path)
    tensors, _ = runnable(graph, open_session(written, 1))
    inputs = arrays(tensors)
    answers = open_session(written, 1).run(inputs)
    if path.suffix == ".onnx":
        expected = open_session(path, 1).run(inputs)
        for attempt in range(rounds):
            sessions = (open_session(path, 1), open_session(written, 1))
            if attempt % 2:  # memory that is taken first may lie better
                sessions = (open_session(written, 1), open_session(path, 1))[::-1]
            found = measure_latency(*sessions, inputs, batch=2, threads=1, seed=attempt)
            if found is not None:
                trip.latency.append(1 / found.ratio)
        trip.missed += _differences(onnx.load(path), onnx.load(written))
        trip.names = _names(onnx.load(path), onnx.load(written))
        if trip.latency and statistics.median(trip.latency) > LATENCY:
            trip.missed.append("latency")
    else:
        with torch.no_grad():
            expected = arrays(graph(*tensors))
    trip.outputs = max(_difference(own, other) for own, other in zip(answers, expected, strict=True))
    if trip.outputs > OUTPUTS:
        trip.missed.append("outputs")
    return trip


def _difference(own: np.ndarray, other: np.ndarray) -> float:
    if own.shape != other.shape or own.dtype != other.dtype:
        return float("inf")
    if not own.size:
        return 0.0
    wide, expected = own.astype(np.float64), other.astype(np.float64)
    return float(np.abs(wide - expected).max() / max(np.abs(expected).max(), 1e-12))


def _differences(original: ModelProto, written: ModelProto) -> Iterator[str]:
    stored = {tensor.name for tensor in original.graph.initializer}
    for what in ("input", "output"):
        before, after = (
            [
                (v.name, v.type.tensor_type.elem_type, _dims(v))
                for v in getattr(model.graph, what)
                if v.name not in stored
            ]
            for model in (original, written)
        )
        if before != after:
            yield f"{what}s: {before} → {after}"
    before, after = ({entry.key: entry.value for entry in model.metadata_props} for model in (original, written))
    if before != after or original.doc_string != written.doc_string:
        yield "metadata"


def _dims(value: onnx.ValueInfoProto) -> list[str | int]:
    """Exporters write open dimensions in several ways."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_param or (dim.dim_value if dim.dim_value > 0 else "") for dim in dims]


def _names(original: ModelProto, written: ModelProto) -> str:
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    weights = {t.name for t in original.graph.initializer if t.data_type in floats and len(t.dims) > 1}
    stored = {tensor.name for tensor in written.graph.initializer}
    nodes = [node.name for node in original.graph.node if node.name and node.op_type != "Constant"]
    kept = {node.name for node in written.graph.node}
    return f"{len(weights & stored)}/{len(weights)}, {sum(name in kept for name in nodes)}/{len(nodes)}"


def made_weights(structure: Path, target: Path) -> None:
    """A model of the `onnx` package whose constants have turned into random weights, as trained ones would be."""
    model = onnx.load(structure)
    generator = np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        spread = np.sqrt(2 / max(1, np.prod(shape[1:])))
        positive = len(shape) == 1
        values = generator.uniform(0.5, 1.5, shape) if positive else generator.normal(0, spread, shape)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    left = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    del model.graph.value_info[:]
    helper.set_model_props(model, {})
    onnx.save(model, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    entries = zoo(arguments.cache, arguments.data)
    models = {name: entry.path() for name, entry in entries.items() if _asked(name, arguments)}
    light = entries.get("light-resnet50")
    if light is not None and _asked("resnet50-made", arguments):
        models["resnet50-made"] = arguments.cache / "resnet50-made.onnx"
        if not models["resnet50-made"].exists():
            made_weights(light.path(), models["resnet50-made"])
    table = Table("model", "read s", "write s", "size", "memory", "outputs", "latency", "names kept", "missed")
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in models.items():
            trip = _one(name, path, Path(folder) / "written.onnx", arguments.rounds)
            table.add_row(name, *_row(trip))
            missed += [f"{name}: {what}" for what in trip.missed]
            print(name, *_row(trip), sep="  ", flush=True, file=sys.stderr)
    Console(width=180).print(table)
    print(f"{len(models)} models, {len(missed)} bars missed", *missed, sep="\n  ")
    sys.exit(bool(missed))


def _asked(name: str, arguments: argparse.Namespace) -> bool:
    return not arguments.only or name in arguments.only


def _one(name: str, path: Path, written: Path, rounds: int) -> Trip:
    """Each half in a fresh process: what a parent has loaded would count as memory, and a crash ends but one."""
    trip = Trip()
    try:
        trip = _alone(travel, name, path, written)
        trip = _alone(compare, path, written, trip, rounds)
    except Exception as error:  # noqa: BLE001 (whatever happens to one model, the others are measured)
        trip.missed.append(f"{type(error).__name__}: {error}")
    return trip


def _alone(work: Callable[..., Trip], *arguments: Any, **options: Any) -> Trip:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments, **options).result()


def _row(trip: Trip) -> tuple[str, ...]:
    latency = (
        f"{statistics.median(trip.latency):.3f} ({min(trip.latency):.3f} to {max(trip.latency):.3f})"
        if trip.latency
        else "–"
    )
    memory = "–" if trip.memory is None else f"{trip.memory:.2f}×"
    return (
        f"{trip.read:.2f}", f"{trip.write:.2f}", f"{trip.size:.3f}×", memory, f"{trip.outputs:.0e}", latency,
        trip.names, ", ".join(trip.missed)[:120],
    )  # fmt: skip


if __name__ == "__main__":
    main()
