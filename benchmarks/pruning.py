"""What pruning costs in accuracy, and how much of that distillation on unlabelled inputs brings back.

    python benchmarks/pruning.py [MODEL --train FILE --evaluate FILE] [--sparsity 0.7 0.9] [--epochs 3] [--threads 1]

Each row is a whole job, from file to report: accuracy and agreement are those of the written file in ONNX Runtime. The
labels of the training data are not used. Without arguments it takes the example of this repository.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from modelpress.report import Report
from workers.engine.pipeline import run

EXAMPLE = Path(__file__).parent.parent / "examples" / "fashion_mnist"
Recipe = list[dict[str, Any]]


def recipes(sparsities: list[float], epochs: int) -> Iterator[tuple[str, Recipe]]:
    distillation = {"step": "distillation", "epochs": epochs}
    for sparsity in sparsities:
        pruning = {"step": "magnitude_pruning", "sparsity": sparsity}
        yield f"{sparsity:.0%}, one shot, the same in each layer", [pruning | {"scope": "layer"}]
        yield f"{sparsity:.0%}, one shot", [pruning]
        yield f"{sparsity:.0%}, distilled", [pruning, distillation]
        yield (
            f"{sparsity:.0%}, in three rounds, distilled",
            [pruning | {"schedule": "cubic", "rounds": 3, "epochs": epochs}],
        )
    two_of_four = {"step": "magnitude_pruning", "pattern": "2:4"}
    yield "2:4, one shot", [two_of_four]
    yield "2:4, distilled", [two_of_four, distillation]


def compress(arguments: argparse.Namespace, recipe: Recipe) -> tuple[Report, float]:
    """Raises RuntimeError with the reason where the job fails."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        files = {"model": arguments.model, "train": arguments.train, "evaluate": arguments.evaluate}
        for use, file in files.items():
            shutil.copy(file, run_dir / use)
        job = {
            "kind": "compress",
            "model": {"path": "model", "filename": arguments.model.name},
            "data": {use: {"path": use, "filename": files[use].name} for use in ("train", "evaluate")},
            "request": {"recipe": recipe, "task": {"kind": "classification"}},
            "limits": {"threads": arguments.threads},
        }
        (run_dir / "job.json").write_text(json.dumps(job))
        result = run(run_dir, lambda _: None)
    if result.report is None:
        raise RuntimeError(f"{recipe}: {result.error}")
    return result.report, sum(step.seconds for step in result.report.steps)


def row(name: str, report: Report, seconds: float) -> list[str]:
    quality = report.quality
    if quality is None:
        raise RuntimeError("the evaluation data has no labels")
    pruned = next(step for step in report.steps if step.step == "magnitude_pruning")
    return [
        name,
        f"{pruned.metrics['sparsity']:.2%}",
        f"{quality.result:.4f}",
        f"{quality.change:+.4f} ({quality.low:+.4f} to {quality.high:+.4f})",
        f"{report.agreement[0].top1 or 0:.4f}",
        f"{report.size[0].zstd_bytes / report.size[1].zstd_bytes:.2f} ×",
        f"{seconds:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=EXAMPLE / "resnet.onnx")
    parser.add_argument("--train", type=Path, default=EXAMPLE / "train.npz")
    parser.add_argument("--evaluate", type=Path, default=EXAMPLE / "evaluate.npz")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.9])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    columns = ["pruning", "zeros", "accuracy", "change (95 %)", "agreement", "zstd", "s in steps"]
    table = Table(*columns)
    began = time.monotonic()
    for name, recipe in recipes(arguments.sparsity, arguments.epochs):
        report, seconds = compress(arguments, recipe)
        if report.quality:
            table.title = f"{arguments.model.name}: {report.quality.original:.4f} on {report.quality.n} examples"
        table.caption = (
            f"{report.environment.cpu}, {arguments.threads} thread(s), ONNX Runtime {report.environment.onnxruntime}"
        )
        table.add_row(*row(name, report, seconds))
    Console(width=140).print(table)
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
