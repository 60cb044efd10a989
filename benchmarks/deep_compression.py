"""Deep Compression as one recipe over HTTP: gradual pruning, shared weights, a packed file.

    python -m benchmarks.deep_compression FOLDER CACHE [--only NAME] [--curve] [--direct] [--threads N]

FOLDER holds Fashion-MNIST, fashion_{train,val,eval}_u8.npz: images (N, 28, 28) uint8 and labels. CACHE keeps the dense
networks, which are trained on the 55,000 training images where they are not there: LeNet-300-100 and Caffe's
LeNet-5, plainly and carefully, on which Han et al., 2016 (arXiv:1510.00149) reach 40 × and 39 × without loss, on MNIST.

Starts a service of its own and sends it a job for each case; the file that comes back is unpacked and judged on the
10,000 test images. Ratios are bytes of the original's ONNX file by bytes of the packed one. The recipes were chosen on
`val`. `--curve` goes on to 200 ×. `--direct` leaves the service out. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import Arrays, fashion, run_job
from benchmarks.lenets import accuracy, reference
from benchmarks.service import service
from modelpress.client import Client
from modelpress.packed import unpack

Recipe = Sequence[Mapping[str, Any]]
Compress = Callable[[str, Path, Recipe, Path], None]
"""(name of the net, its file, recipe, where the packed result goes)."""


@dataclass(frozen=True)
class Case:
    net: str
    name: str
    sparsity: float
    values: int
    epochs: int
    ratio: float
    """At least; of the curve: what it aims at."""
    drop: float | None
    """Of accuracy on the test images, at most; None: it is only told."""
    labels: float = 0.0
    """Their share of the loss: they help where the teacher was not trained well."""

    def recipe(self) -> Recipe:
        taught = {"batch_size": 128, "temperature": 4, "validation": 0.02, "label_weight": self.labels}
        return (
            {"step": "magnitude_pruning", "schedule": "cubic", "sparsity": self.sparsity, "epochs": self.epochs}
            | taught
            | {"learning_rate": 2e-3},
            {"step": "weight_clustering", "values": self.values, "biases": True, "epochs": self.epochs // 6}
            | taught
            | {"learning_rate": 5e-4},
        )

    def missed(self, ratio: float, change: float) -> str:
        found = []
        if self.drop is not None and ratio < self.ratio:
            found.append(f"{ratio:.1f} × is less than {self.ratio:g} ×")
        if self.drop is not None and -change > self.drop + 1e-9:
            found.append(f"{-100 * change:.2f} points lost, {100 * self.drop:g} allowed")
        return "; ".join(found)


CASES = (
    Case("LeNet-300-100 plain", "without loss", 0.923, 16, 40, 45, 0.0, labels=0.5),
    Case("LeNet-300-100 plain", "small", 0.9635, 16, 40, 80, 0.003, labels=0.5),
    Case("LeNet-300-100", "without loss", 0.92, 16, 40, 45, 0.0),
    Case("LeNet-300-100", "small", 0.9635, 16, 40, 80, 0.003),
    Case("LeNet-5 plain", "without loss", 0.92, 16, 12, 45, 0.0, labels=0.5),
    Case("LeNet-5 plain", "small", 0.963, 16, 12, 80, 0.003, labels=0.5),
    Case("LeNet-5", "without loss", 0.92, 16, 12, 45, 0.0),
    Case("LeNet-5", "small", 0.963, 16, 12, 80, 0.003),
)
CURVE = tuple(
    Case(net, "curve", sparsity, 16, epochs, ratio, None, labels=labels)
    for net, epochs, labels in (("LeNet-300-100 plain", 40, 0.5), ("LeNet-300-100", 40, 0.0), ("LeNet-5", 12, 0.0))
    for sparsity, ratio in ((0.973, 100), (0.983, 150), (0.989, 200))
)


class Service:
    """Sends models and data once, and a job for each case."""

    def __init__(self, client: Client, data: Mapping[str, Path]) -> None:
        self._client = client
        self._data = {use: client.wait(client.upload_dataset(file)).id for use, file in data.items()}
        self._models: dict[str, str] = {}

    def __call__(self, net: str, model: Path, recipe: Recipe, target: Path) -> None:
        if net not in self._models:
            self._models[net] = self._client.wait(self._client.upload_model(model)).id
        job = self._client.create_job(
            self._models[net], recipe, data=self._data, formats=["packed"], budget={"seconds": 7200}
        )
        done = self._client.wait_job(job.id)
        if done.result is None:
            raise SystemExit(f"the job {done.status}: {done.error}")
        self._client.download(done.result.model_id, target, "packed")


class Direct:
    """The engine alone, in this process."""

    def __init__(self, data: Mapping[str, Arrays], scratch: Path, threads: int) -> None:
        self._data, self._scratch, self._threads = data, scratch, threads

    def __call__(self, net: str, model: Path, recipe: Recipe, target: Path) -> None:
        run_dir = self._scratch / f"{net}-{time.monotonic_ns()}"
        result, _ = run_job(model, recipe, self._data, run_dir, threads=self._threads, formats=["packed"])
        if result.error is not None:
            raise SystemExit(f"{net}: {result.error}")
        (run_dir / "out" / Path(result.files[0].path).name).rename(target)


def judge(model: Path, packed: Path, test: Arrays) -> tuple[float, float, float]:
    """Ratio of bytes, and accuracy of the original and of what was unpacked."""
    unpacked = packed.with_suffix(".onnx")
    unpack(packed, unpacked)
    ratio = model.stat().st_size / packed.stat().st_size
    return ratio, accuracy(model, test), accuracy(unpacked, test)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--only", default="", help="part of a case's name, such as: plain small")
    parser.add_argument("--curve", action="store_true", help="go on to 200 times")
    parser.add_argument("--direct", action="store_true", help="run the engine in this process")
    parser.add_argument("--threads", type=int, default=2, help="for --direct")
    arguments = parser.parse_args()
    cases = [
        case for case in (*CASES, *(CURVE if arguments.curve else ())) if arguments.only in f"{case.net} {case.name}"
    ]
    models = {net: reference(net, arguments.folder, arguments.cache) for net in dict.fromkeys(c.net for c in cases)}
    train, test = (fashion(arguments.folder, part, labelled=True) for part in ("train", "eval"))
    data = {"train": train, "evaluate": test}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if arguments.direct:
            return run(cases, models, Direct(data, scratch, arguments.threads), test, scratch)
        for use, arrays in data.items():
            np.savez(scratch / f"{use}.npz", **arrays)
        with service(scratch) as client:
            files = {use: scratch / f"{use}.npz" for use in data}
            return run(cases, models, Service(client, files), test, scratch)


def run(cases: Sequence[Case], models: Mapping[str, Path], compress: Compress, test: Arrays, scratch: Path) -> int:
    table = Table(title="Deep Compression of Fashion-MNIST, 10,000 test images", show_lines=True)
    for column in ("network", "case", "recipe", "bytes", "ratio", "accuracy", "points", "time", "goal"):
        table.add_column(column)
    failed = False
    for index, case in enumerate(cases):
        packed, began = scratch / f"{index}.packed", time.monotonic()
        compress(case.net, models[case.net], case.recipe(), packed)
        seconds = time.monotonic() - began
        ratio, before, after = judge(models[case.net], packed, test)
        missed = case.missed(ratio, after - before)
        failed |= bool(missed)
        table.add_row(
            case.net,
            case.name,
            f"{case.sparsity:.1%} zeros, {case.values} values, {case.epochs} epochs",
            f"{models[case.net].stat().st_size:,} → {packed.stat().st_size:,}",
            f"{ratio:.1f} ×",
            f"{before:.4f} → {after:.4f}",
            f"{100 * (after - before):+.2f}",
            f"{seconds:.0f} s",
            missed or ("reached" if case.drop is not None else ""),
        )
        Console(width=200).print(table)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
