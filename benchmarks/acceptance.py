"""The figures that the engine must reach on reference models, through the pipeline, from file to report.

    python -m benchmarks.acceptance FOLDER [--only NAME] [--threads N] [--keep OUT]

FOLDER holds
    resnet.onnx, resnet_legacy_op17.onnx Fashion-MNIST, input x (N, 1, 28, 28) normalised, output logits
    fashion_{train,calib,eval}_u8.npz    images (N, 28, 28) uint8 and labels
    vowels_lstm.onnx, vowels_gru.onnx    JapaneseVowels, input x (N, time, 12), output logits
    japanese_vowels.npz                  x_train, y_train, x_test, y_test
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.jobs import Arrays, Results, fashion, run_job, told_ratio, vowels
from modelpress.report import Report


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    recipe: list[dict[str, Any]]
    data: tuple[str, ...]
    size_ratio: float | None = None
    """At least."""
    latency_ratio: float | None = None
    """At least, at batch 1 with one thread."""
    drop: float = 1.0
    """Of accuracy, at most."""
    zeros: float = 0.0
    """Share of the parameters, at least."""
    options: dict[str, Any] = field(default_factory=dict)


DISTILLED: dict[str, Any] = {"step": "distillation", "epochs": 40, "learning_rate": 3e-3, "seconds": 480}

CASES = (
    Case(
        "ResNet static_quantization", "resnet.onnx", [{"step": "static_quantization"}],
        ("fashion_calibrate", "fashion_evaluate"), size_ratio=3.6, latency_ratio=1.5, drop=0.001,
    ),
    Case(
        "ResNet magnitude_pruning 70 %", "resnet.onnx", [{"step": "magnitude_pruning", "sparsity": 0.7}],
        ("fashion_evaluate",), zeros=0.69,
    ),
    Case(
        "ResNet magnitude_pruning 70 % + distillation", "resnet.onnx",
        [{"step": "magnitude_pruning", "sparsity": 0.7}, {"step": "distillation"}],
        ("fashion_train", "fashion_evaluate"), drop=0.005, zeros=0.69,
    ),
    Case(
        "ResNet pruning + distillation + static_quantization", "resnet.onnx",
        [{"step": "magnitude_pruning", "sparsity": 0.7}, {"step": "distillation"}, {"step": "static_quantization"}],
        ("fashion_train", "fashion_calibrate", "fashion_evaluate"), size_ratio=3.6, latency_ratio=1.5, drop=0.005,
    ),
    Case(
        "ResNet 12 times smaller", "resnet_legacy_op17.onnx",
        [{"step": "channel_pruning"}, DISTILLED, {"step": "static_quantization"}],
        ("fashion_train", "fashion_calibrate", "fashion_evaluate"), size_ratio=12, latency_ratio=3.5, drop=0.0015,
    ),
    Case(
        "ResNet 20 times smaller", "resnet_legacy_op17.onnx",
        [
            {"step": "depth_pruning", "blocks": 1}, {"step": "channel_pruning", "ratio": 0.6}, DISTILLED,
            {"step": "static_quantization"},
        ],
        ("fashion_train", "fashion_calibrate", "fashion_evaluate"), size_ratio=20, latency_ratio=5, drop=0.007,
    ),
    Case(
        "BiLSTM dynamic_quantization", "vowels_lstm.onnx", [{"step": "dynamic_quantization"}],
        ("vowels_evaluate",), size_ratio=3.3, drop=0.006,
    ),
    Case(
        "BiGRU dynamic_quantization", "vowels_gru.onnx", [{"step": "dynamic_quantization"}],
        ("vowels_evaluate",), size_ratio=3.3, drop=0.006,
    ),
)  # fmt: skip


def load(folder: Path, names: tuple[str, ...]) -> dict[str, Arrays]:
    """By use. Training and calibration data come without labels: no case may look at them."""
    found: dict[str, Arrays] = {}
    for name in names:
        kind, _, use = name.partition("_")
        part = {"train": "train", "calibrate": "calib", "evaluate": "eval"}[use]
        found[use] = fashion(folder, part, labelled=use == "evaluate") if kind == "fashion" else vowels(folder)[use]
    return found


def misses(case: Case, report: Report) -> list[str]:
    """What the case should have reached and did not."""
    found = []
    if case.size_ratio is not None and report.size_ratio < case.size_ratio:
        found.append(f"size {report.size_ratio:.2f} < {case.size_ratio}")
    if case.latency_ratio is not None and report.latency[0].ratio < case.latency_ratio:
        found.append(f"latency {report.latency[0].ratio:.2f} < {case.latency_ratio}")
    if report.quality is None or -report.quality.change > case.drop:
        found.append(f"accuracy change {report.quality.change if report.quality else float('nan'):+.4f}")
    if zeros(report) < case.zeros:
        found.append(f"zeros {zeros(report):.3f} < {case.zeros}")
    return found


def zeros(report: Report) -> float:
    return 1 - report.size[1].nonzeros / report.size[1].parameters


def row(case: Case, report: Report, seconds: float) -> list[str]:
    one, many = report.latency[0], report.latency[1]
    quality, agreement = report.quality, report.agreement[0]
    assert quality is not None
    top1 = f"{agreement.top1:.4f}" if agreement.top1 is not None else "-"
    change = f"{quality.change:+.4f} ({quality.low:+.4f} to {quality.high:+.4f})"
    return [
        case.name,
        f"{report.size[0].bytes / 1000:.0f} → {report.size[1].bytes / 1000:.0f} kB\n{report.size_ratio:.2f} ×",
        f"{one.original.median_ms:.3f} → {one.result.median_ms:.3f} ms\n{told_ratio(one)}",
        told_ratio(many),
        f"{quality.original:.4f} → {quality.result:.4f}\n{change}",
        str(quality.n),
        f"top-1 {top1}\ncosine {agreement.cosine:.4f}",
        f"{zeros(report):.1%}",
        f"{seconds:.1f}",
        str(report.verdict),
        "; ".join(misses(case, report)) or "reached",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the reports, as JSON")
    arguments = parser.parse_args()
    columns = [
        "case",
        "size",
        "latency, batch 1",
        "batch 32",
        "accuracy",
        "n",
        "agreement",
        "zeros",
        "s",
        "verdict",
        "goal",
    ]
    results = Results("Reference models, measured in ONNX Runtime", columns, arguments.keep)
    for case in (case for case in CASES if arguments.only in case.name):
        with tempfile.TemporaryDirectory() as folder:
            data = load(arguments.folder, case.data)
            model, run_dir = arguments.folder / case.model, Path(folder) / "run"
            result, seconds = run_job(model, case.recipe, data, run_dir, threads=arguments.threads)
        report = results.report_of(case.name, result)
        if report is not None:
            results.add(row(case, report, seconds), misses(case, report))
            place = report.environment
            results.table.caption = (
                f"{place.cpu}: {', '.join(place.isa)}; {place.threads} thread(s); ONNX Runtime {place.onnxruntime}"
            )
    return results.show()


if __name__ == "__main__":
    raise SystemExit(main())
