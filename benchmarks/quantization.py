"""Our quantization against ONNX Runtime's own and the float model: bytes, time and accuracy in one process.

    python benchmarks/quantization.py [--model M.onnx] [--calibrate C.npz] [--evaluate E.npz]
                                      [--step static_quantization] [--runtime cpu-vnni] [--pairs N]

Defaults to the example model and its data. An npz holds the model's inputs by name, and `labels`.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console
from rich.table import Table

from modelpress.jobs import Task
from modelpress.models import Signature
from modelpress.steps import STEPS
from workers.engine.context import Context
from workers.engine.data import DatasetBatches, read_dataset
from workers.engine.graph import Graph
from workers.engine.readers.onnx import read_onnx
from workers.engine.runtime import Session, open_session
from workers.engine.steps import APPLY
from workers.engine.task import resolve_runtime
from workers.engine.writers.onnx import write_onnx

EXAMPLE = Path(__file__).parent.parent / "examples" / "fashion_mnist"
BATCHES = (1, 32)
CHUNK = 100


@dataclass(frozen=True)
class Candidate:
    name: str
    session: Session
    bytes: int
    seconds: float
    """That making it took."""
    note: str = ""


class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped in onnxruntime
    """Calibration data as ONNX Runtime's quantizer wants it."""

    def __init__(self, names: list[str], data: DatasetBatches) -> None:
        self._names = names
        self._batches = chunks(data)

    def get_next(self) -> dict[str, np.ndarray] | None:
        inputs = next(self._batches, None)
        return None if inputs is None else dict(zip(self._names, inputs, strict=True))


def chunks(data: DatasetBatches) -> Iterator[list[np.ndarray]]:
    for indices in torch.arange(data.examples).split(CHUNK):
        yield [tensor.numpy() for tensor in data.take(indices)[0]]


def ours(options: dict[str, Any], graph: Graph, calibrate: DatasetBatches, runtime: Any) -> tuple[bytes, str]:
    step = STEPS[options["step"]](**options)
    importlib.import_module(f"workers.engine.steps.{step.step}")
    context = Context(
        train=None,
        calibrate=calibrate,
        teacher=graph,
        original=graph,
        device=torch.device("cpu"),
        runtime=runtime,
        task="classification",
        output=0,
        class_axis=1,
        seed=0,
        deadline=time.monotonic() + 3600,
        progress=lambda _fraction, _message: None,
        metric=lambda _values: None,
    )
    made = APPLY[type(step)](step, graph.copy(), context)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in context.figures.items())
    return write_onnx(made), figures


def ort_static(model: Path, graph: Graph, calibrate: DatasetBatches, *, reduce_range: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=True)  # which gives up on shapes that are computed
        quantize_static(
            prepared,
            quantized,
            Reader([spec.name for spec in graph.inputs], calibrate),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return quantized.read_bytes()


def ort_dynamic(model: Path, *, reduce_range: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "quantized.onnx"
        quantize_dynamic(model, quantized, per_channel=True, reduce_range=reduce_range, weight_type=QuantType.QInt8)
        return quantized.read_bytes()


def candidate(name: str, make: Callable[[], tuple[bytes, str]]) -> Candidate:
    began = time.process_time()
    content, note = make()
    return Candidate(name, open_session(content, 1), len(content), time.process_time() - began, note)


def accuracy(session: Session, data: DatasetBatches) -> float:
    hits = 0
    for indices in torch.arange(data.examples).split(CHUNK):
        inputs, labels = data.take(indices)
        if labels is None:
            raise SystemExit("the evaluation data has no labels")
        hits += int((session.run([tensor.numpy() for tensor in inputs])[0].argmax(-1) == labels.numpy()).sum())
    return hits / data.examples


def times(candidates: list[Candidate], data: DatasetBatches, batch: int, pairs: int) -> np.ndarray:
    """Seconds of shape (rounds, candidates); in every round each runs once, in random order."""
    inputs = [tensor.numpy() for tensor in data.take(torch.arange(batch))[0]]
    order, measured = random.Random(0), np.zeros((pairs, len(candidates)))
    for _ in range(20):
        for one in candidates:
            one.session.run(inputs)
    for row in measured:
        for index in order.sample(range(len(candidates)), len(candidates)):
            began = time.perf_counter()
            candidates[index].session.run(inputs)
            row[index] = time.perf_counter() - began
    return measured


def table(candidates: list[Candidate], data: DatasetBatches, pairs: int) -> Table:
    rows = Table("model", "KB", "smaller", "made in CPU s", "accuracy", *(f"batch {b}" for b in BATCHES), "note")
    measured = [times(candidates, data, batch, pairs if batch == 1 else max(20, pairs // 10)) for batch in BATCHES]
    for index, one in enumerate(candidates):
        latencies = [
            f"{np.median(m[:, index]) * 1e3:.3f} ms, {np.median(m[:, 0] / m[:, index]):.2f}x" for m in measured
        ]
        rows.add_row(
            one.name,
            f"{one.bytes / 1000:.1f}",
            f"{candidates[0].bytes / one.bytes:.2f}x",
            f"{one.seconds:.1f}",
            f"{accuracy(one.session, data):.4f}",
            *latencies,
            one.note,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EXAMPLE / "resnet.onnx")
    parser.add_argument("--calibrate", type=Path, default=EXAMPLE / "calibrate.npz")
    parser.add_argument("--evaluate", type=Path, default=EXAMPLE / "evaluate.npz")
    parser.add_argument(
        "--step", choices=["static_quantization", "dynamic_quantization"], default="static_quantization"
    )
    parser.add_argument("--runtime", default="auto", help="cpu-avx2 or cpu-vnni; auto is this machine's own")
    parser.add_argument("--pairs", type=int, default=500, help="rounds of timing at batch 1")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)

    graph = read_onnx(asked.model)
    signature = Signature(inputs=graph.inputs, outputs=graph.outputs)
    with tempfile.TemporaryDirectory() as scratch:
        calibrate, evaluate = (
            DatasetBatches(read_dataset(path, Path(scratch)), signature, Task())
            for path in (asked.calibrate, asked.evaluate)
        )
        runtime = resolve_runtime(asked.runtime, torch.device("cpu"))
        reduce = runtime == "cpu-avx2"
        options = {"step": asked.step}
        candidates = [
            candidate("float", lambda: (asked.model.read_bytes(), "")),
            candidate(f"ours, {runtime}", lambda: ours(options, graph, calibrate, runtime)),
        ]
        if asked.step == "static_quantization":
            candidates.append(
                candidate("ONNX Runtime", lambda: (ort_static(asked.model, graph, calibrate, reduce_range=reduce), ""))
            )
        else:
            candidates.append(
                candidate("ONNX Runtime", lambda: (ort_dynamic(asked.model, reduce_range=reduce), "per channel"))
            )
        Console(width=200).print(table(candidates, evaluate, asked.pairs))


if __name__ == "__main__":
    main()
