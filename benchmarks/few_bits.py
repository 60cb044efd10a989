"""Weights of four, three, two bits and one, trained: how small a ResNet and recurrent nets become, and what it costs.

    python -m benchmarks.few_bits FOLDER [--only NAME] [--seconds S] [--examples N] [--threads N] [--keep OUT]

FOLDER holds what acceptance.py and structural_pruning.py take. No labels are used. Cases called "rounded" show what is
lost by rounding to as many bits, without a training. Every training stops after S seconds. Sizes are those of the ONNX
file and of the packed one, each beside the original ONNX file. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import Arrays, Results, fashion, run_job, told_ratio, vowels
from modelpress.report import Report

QAT = "quantization_aware_training"


@dataclass(frozen=True)
class Case:
    name: str
    recipe: tuple[dict[str, Any], ...]
    model: str = "resnet.onnx"
    drop: float | None = None
    """Of accuracy on the test data, at most."""
    size_ratio: float | None = None
    packed_ratio: float | None = None
    """Both at least."""
    data: bool = True
    """Whether there is any to train on."""


def rounding(bits: int) -> dict[str, Any]:
    return {"step": "weight_only_quantization", "bits": bits, "method": "rtn", "group_size": None}


CASES = (
    Case("ResNet, 4 bits, rounded", (rounding(4),)),
    Case("ResNet, 4 bits", ({"step": QAT},), drop=0.01),
    Case("ResNet, 3 bits, rounded", (rounding(3),)),
    Case("ResNet, 3 bits", ({"step": QAT, "weight_bits": 3},), drop=0.01),
    Case("ResNet, 2 bits, rounded", (rounding(2),)),
    Case("ResNet, 2 bits", ({"step": QAT, "weight_bits": 2},), drop=0.02),
    Case("ResNet, 2 bits, no data", ({"step": QAT, "weight_bits": 2},), "resnet_legacy_op17.onnx", data=False),
    Case("ResNet, int8", ({"step": QAT, "weight_bits": 8, "activation_bits": 8},), drop=0.002),
    Case("ResNet, 4 bits, computed in int8", ({"step": QAT, "activation_bits": 8},), drop=0.01),
    Case("ResNet, ternary", ({"step": "ternarization"},), drop=0.02),
    Case("ResNet, binary", ({"step": "binarization"},), drop=0.02, packed_ratio=20),
    Case("ResNet, binary, activations too", ({"step": "binarization", "activations": True},)),
    Case("BiGRU, 4 bits, rounded", (rounding(4),), "vowels_gru.onnx"),
    Case("BiGRU, 4 bits", ({"step": QAT, "keep_edges": False},), "vowels_gru.onnx", drop=0.01, size_ratio=6),
    Case("BiGRU, 2 bits, rounded", (rounding(2),), "vowels_gru.onnx"),
    Case("BiGRU, 2 bits", ({"step": QAT, "weight_bits": 2},), "vowels_gru.onnx", drop=0.02),
    Case("BiLSTM, 4 bits", ({"step": QAT, "keep_edges": False},), "vowels_lstm.onnx", drop=0.01, size_ratio=6),
    Case("BiLSTM, 2 bits", ({"step": QAT, "weight_bits": 2},), "vowels_lstm.onnx", drop=0.02),
)


def data_for(case: Case, folder: Path, examples: int | None) -> dict[str, Arrays]:
    if case.model.startswith("vowels"):
        return vowels(folder)
    train = {"train": {"x": fashion(folder, "train", labelled=False)["x"][:examples]}} if case.data else {}
    return train | {"evaluate": fashion(folder, "eval", labelled=True)}


def packed_ratio(report: Report) -> float:
    return report.size[0].bytes / (report.size[1].packed_bytes or report.size[1].bytes)


def misses(case: Case, report: Report) -> list[str]:
    """What the case should have reached and did not."""
    found = []
    if case.drop is not None and (report.quality is None or -report.quality.change > case.drop):
        found.append(f"accuracy fell by more than {case.drop}")
    if case.size_ratio is not None and report.size_ratio < case.size_ratio:
        found.append(f"size {report.size_ratio:.2f} < {case.size_ratio}")
    if case.packed_ratio is not None and packed_ratio(report) < case.packed_ratio:
        found.append(f"packed {packed_ratio(report):.2f} < {case.packed_ratio}")
    return found


def row(case: Case, report: Report, seconds: float) -> list[str]:
    quality = report.quality
    accuracy = f"{quality.original:.4f} → {quality.result:.4f}\n{quality.change:+.4f}" if quality else "-"
    packed = report.size[1].packed_bytes or report.size[1].bytes
    return [
        case.name,
        accuracy,
        f"{report.size[0].bytes / 1000:.0f} → {report.size[1].bytes / 1000:.0f} kB\n{report.size_ratio:.2f} ×",
        f"{packed / 1000:.0f} kB\n{packed_ratio(report):.2f} ×",
        told_ratio(report.latency[0]),
        told_ratio(report.latency[1]),
        f"{report.steps[0].seconds:.0f} of {seconds:.0f} s\n{report.steps[0].metrics.get('updates', 0):.0f} updates",
        "; ".join(misses(case, report)) or ("reached" if case.drop is not None else ""),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--seconds", type=float, default=720, help="that a training may take")
    parser.add_argument("--examples", type=int, help="images of the training data that are used; all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the reports, as JSON")
    arguments = parser.parse_args()
    columns = ("case", "accuracy", "size", "packed", "latency, batch 1", "batch 32", "time", "goal")
    results = Results("Weights of few bits, measured in ONNX Runtime", columns, arguments.keep)
    for case in (case for case in CASES if arguments.only in case.name):
        recipe = [
            step if step["step"] == "weight_only_quantization" else {"seconds": arguments.seconds} | step
            for step in case.recipe
        ]
        data = data_for(case, arguments.folder, arguments.examples)
        with tempfile.TemporaryDirectory() as scratch:
            result, seconds = run_job(
                arguments.folder / case.model, recipe, data, Path(scratch) / "run", threads=arguments.threads
            )
        report = results.report_of(case.name, result)
        if report is not None:
            results.add(row(case, report, seconds), misses(case, report))
    return results.show()


if __name__ == "__main__":
    raise SystemExit(main())
