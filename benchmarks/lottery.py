"""The lottery ticket of LeNet-300-100 on Fashion-MNIST: is it as good as the dense net, and better than its mask alone?

    python -m benchmarks.lottery FOLDER [--seeds N] [--epochs N] [--images N] [--sparsity S]

FOLDER holds fashion_{train,eval}_u8.npz. For each seed, all trained in the same way by labels, from nothing:
    dense   all weights
    ticket  a fifth of them, from the same draw, that `lottery_ticket` finds
    mask    weights in the same places, from another draw
Accuracies are those on the 10,000 test images, in ONNX Runtime; nothing is chosen by them. Exit code 1 where, in the
mean over the seeds, the ticket is worse than dense, or no better than its mask.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.jobs import Arrays, fashion
from benchmarks.lenets import accuracy, lenet_300_100
from modelpress.steps import LotteryTicket
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.initialization import draw_anew
from workers.engine.readers import read_model
from workers.engine.steps.distillation import distil
from workers.engine.steps.lottery_ticket import lottery_ticket
from workers.engine.writers import write_model

OTHER_DRAW = 1000


class Images:
    """`workers.engine.context.Batches` in memory."""

    labelled = True

    def __init__(self, data: Arrays, most: int) -> None:
        self.x, self.y = (torch.from_numpy(data[name][:most]) for name in ("x", "labels"))
        self.examples = len(self.x)

    def take(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        return (self.x[indices],), self.y[indices]


def context(graph: Graph, images: Images, seed: int) -> Context:
    return Context(
        train=images, calibrate=images, teacher=graph, original=graph, device=torch.device("cpu"), runtime="cpu-avx2",
        task="classification", output=0, class_axis=-1, seed=seed, deadline=time.monotonic() + 7200,
        progress=lambda _fraction, _message: None, metric=lambda _values: None,
    )  # fmt: skip


def measured(graph: Graph, test: Arrays, folder: Path) -> float:
    path = folder / "trained.onnx"
    write_model(graph, "onnx", path)
    return accuracy(path, test)


@dataclass(frozen=True)
class Drawn:
    """What came of one draw of the first weights."""

    dense: float
    ticket: float
    mask: float
    rounds: dict[float, float]
    """Share of the weights that is kept: accuracy on the held-out part of the training images."""
    seconds: float
    """For finding the ticket."""


def run(step: LotteryTicket, start: Graph, images: Images, test: Arrays, seed: int, folder: Path) -> Drawn:
    dense = start.copy()
    draw_anew(dense, seed)
    distil(step, dense, context(start, images, seed))
    began, own = time.monotonic(), context(start, images, seed)
    ticket = lottery_ticket(step, start.copy(), own)
    seconds = time.monotonic() - began
    mask = own.extras["ticket"].copy()
    draw_anew(mask, seed + OTHER_DRAW)
    distil(step, mask, context(start, images, seed))
    return Drawn(
        *(measured(graph, test, folder) for graph in (dense, ticket, mask)),
        rounds=dict(zip(own.series["kept"], own.series["accuracy"], strict=True)),
        seconds=seconds,
    )


def untrained(folder: Path) -> Graph:
    file = folder / "untrained.onnx"
    torch.onnx.export(
        lenet_300_100(), (torch.zeros(2, 1, 28, 28),), file, dynamo=False, input_names=["x"], output_names=["logits"],
        dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
    return read_model(file)[1]


def shown(drawn: list[Drawn]) -> list[Table]:
    table = Table("seed", "dense", "ticket", "other weights, same mask", "time", title="Accuracy on the test images")
    for seed, found in enumerate(drawn):
        accuracies = (f"{value:.4f}" for value in (found.dense, found.ticket, found.mask))
        table.add_row(str(seed), *accuracies, f"{found.seconds:.0f} s")
    table.add_row("mean", *(f"{mean(values):.4f}" for values in columns(drawn)), "", style="bold")
    rounds = Table("weights kept", "accuracy", title="By round, on held-out training images, mean over the seeds")
    for kept in drawn[0].rounds:
        rounds.add_row(f"{kept:.1%}", f"{mean(found.rounds[kept] for found in drawn):.4f}")
    return [table, rounds]


def columns(drawn: list[Drawn]) -> tuple[list[float], list[float], list[float]]:
    return [d.dense for d in drawn], [d.ticket for d in drawn], [d.mask for d in drawn]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--sparsity", type=float, default=0.8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")  # of the exporter that is quicker
    images = Images(fashion(arguments.folder, "train", labelled=True), arguments.images)
    test = fashion(arguments.folder, "eval", labelled=True)
    step = LotteryTicket(
        sparsity=arguments.sparsity, rewind="initial", epochs=arguments.epochs, label_weight=1.0, batch_size=128
    )
    with tempfile.TemporaryDirectory() as scratch:
        start = untrained(Path(scratch))
        drawn = [run(step, start, images, test, seed, Path(scratch)) for seed in range(arguments.seeds)]
    for table in shown(drawn):
        Console(width=100).print(table)
    dense, ticket, mask = map(mean, columns(drawn))
    return int(ticket < dense or ticket <= mask)


if __name__ == "__main__":
    raise SystemExit(main())
