"""What a teacher is worth: to a small student that has few labels, and to a model for which there are no data at all.

    python -m benchmarks.distilling FOLDER [--part val] [--images N] [--epochs N] [--threads N]

FOLDER holds
    resnet.onnx                  Fashion-MNIST, input x (N, 1, 28, 28) normalised, output logits: the teacher
    resnet_legacy_op17.onnx      the same with its batch norms
    fashion_{train,eval}_u8.npz  images (N, 28, 28) uint8 and labels

Hinton's experiment: a student of 20,000 weights learns from the same few images, for as many epochs, once by their
labels and once by the teacher's answers. Without data: int8, and distillation after a third of the channels went, on
inputs made from the statistics of the batch norms. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.jobs import Arrays, fashion, run_job
from modelpress.report import Report
from workers.engine.runtime import open_session

FEWER = 0.30
"""Of the student's errors beyond the teacher's."""
DROP = 0.007
"""Of accuracy by int8 without data, at most."""
REGAINED = 0.20
"""Of accuracy by distillation without data, at least."""
STUDENT = {"learning_rate": 3e-3, "batch_size": 64}
PRUNED = {"step": "channel_pruning", "ratio": 0.3}


def write_student(path: Path) -> int:
    """Two convolutions and a linear layer, untrained; returns how many weights."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 10)
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that writes small files is called an old one
        torch.onnx.export(
            net, (torch.zeros(2, 1, 28, 28),), path, dynamo=False, input_names=["x"], output_names=["logits"],
            dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return sum(parameter.numel() for parameter in net.parameters())


class Bench:
    def __init__(self, folder: Path, part: str, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.evaluate = fashion(folder, part, labelled=True)
        self.scratch = Path(tempfile.mkdtemp())
        self.jobs = 0

    def accuracy(self, model: str) -> float:
        session = open_session(self.folder / model, self.threads, "auto")
        answers = [session.run_all([x])[0] for x in np.array_split(self.evaluate["x"], 40)]
        return float((np.concatenate(answers).argmax(1) == self.evaluate["labels"]).mean())

    def run(
        self, model: Path, recipe: Sequence[Mapping[str, Any]], train: Arrays | None = None, **options: Any
    ) -> tuple[Report, float]:
        """The report, and the seconds that the steps took."""
        self.jobs += 1
        data = {"evaluate": self.evaluate} | ({} if train is None else {"train": train})
        result, _ = run_job(
            model, recipe, data, self.scratch / str(self.jobs), threads=self.threads, formats=["onnx"], **options
        )
        if result.report is None:
            raise SystemExit(f"{recipe}: {result.error}")
        return result.report, sum(step.seconds for step in result.report.steps)


def judged(report: Report) -> tuple[float, float]:
    """Accuracy of the original and of the result."""
    if report.quality is None:
        raise SystemExit("the evaluation data has no labels")
    return report.quality.original, report.quality.result


def hinton(bench: Bench, images: int, epochs: int, console: Console) -> bool:
    teacher, student = bench.folder / "resnet.onnx", bench.scratch / "student.onnx"
    weights = write_student(student)
    known = fashion(bench.folder, "train", labelled=True)
    few = np.random.default_rng(0).permutation(len(known["x"]))[:images]
    train = {name: array[few] for name, array in known.items()}
    options = {"epochs": epochs} | STUDENT
    best = bench.accuracy("resnet.onnx")
    by_labels, seconds = bench.run(student, [{"step": "fine_tuning"} | options], train)
    taught, longer = bench.run(
        student, [{"step": "distillation", "temperature": 4} | options], {"x": train["x"]}, teacher=teacher
    )
    (_, one), (_, other) = judged(by_labels), judged(taught)
    fewer = 1 - (best - other) / (best - one)
    table = Table(title=f"A student of {weights:,} weights, {images:,} images, {epochs} epochs")
    for name in ("", "accuracy", "errors beyond the teacher's", "seconds"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("teacher", f"{best:.2%}", "", "")
    table.add_row("student by labels", f"{one:.2%}", f"{best - one:.2%}", f"{seconds:.0f}")
    table.add_row("student by the teacher's answers", f"{other:.2%}", f"{best - other:.2%}", f"{longer:.0f}")
    table.add_row("", "", f"{fewer:.1%} fewer (bar {FEWER:.0%})", "")
    console.print(table)
    return fewer >= FEWER


def without_data(bench: Bench, console: Console) -> bool:
    table = Table(title="No data at all")
    for name in ("", "accuracy before", "after", "bar", "seconds"):
        table.add_column(name, justify="left" if not name else "right")
    model = bench.folder / "resnet_legacy_op17.onnx"
    report, seconds = bench.run(model, [{"step": "static_quantization"}])
    before, integer = judged(report)
    table.add_row("int8", f"{before:.2%}", f"{integer:.2%}", f"{before - DROP:.2%}", f"{seconds:.0f}")
    report, seconds = bench.run(model, [PRUNED])
    _, pruned = judged(report)
    table.add_row("30 % of the channels pruned", f"{before:.2%}", f"{pruned:.2%}", "", f"{seconds:.0f}")
    report, seconds = bench.run(model, [PRUNED, {"step": "distillation"}])
    _, taught = judged(report)
    bar = pruned + REGAINED
    table.add_row("the same, and distillation", f"{before:.2%}", f"{taught:.2%}", f"{bar:.2%}", f"{seconds:.0f}")
    console.print(table)
    return before - integer <= DROP and taught >= bar


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="eval", help="of the data, by which is judged; val to choose options by")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    console, bench = Console(width=120), Bench(given.folder, given.part, given.threads)
    passed = [hinton(bench, given.images, given.epochs, console), without_data(bench, console)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
