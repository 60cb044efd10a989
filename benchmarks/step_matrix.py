"""Every model of the zoo × every step of the catalogue, each cell a whole job from file to report.

    python -m benchmarks.step_matrix CACHE [--data FOLDER] [--only NAME ...] [--steps NAME ...] [--jobs N]

A cell says how many times smaller and (at batch 1, one thread) faster the result is, and what it lost: points of
accuracy where the model was trained on data that FOLDER holds, else 1 - cosine to the original's answers; or why the
step does not apply. Trainings last some seconds: this shows what works on what, not how good it can get.

Exit code 1 where a job crashes, a file does not run, or a step does nothing without saying so.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.zoo import zoo
from modelpress.steps import STEPS

if TYPE_CHECKING:  # imported only in the children, so that the parent stays small
    from benchmarks.jobs import Arrays
    from modelpress.run import RunResult

EXAMPLES, TRAINED = 48, 2000
"""Made-up examples, and real ones that are trained on."""
MOST_VALUES = 4 << 20
"""In all made-up examples together."""
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "seconds": 8}
OPTIONS: dict[str, dict[str, Any]] = {"input_compression": {"scale": 1 / 64, "mean": 2.0}}
"""Of steps that do nothing without: bytes for numbers from -2 to 2, as normalised data are."""
MASK = 2
"""An input of zeros and ones says which places count."""
LONGEST = 900
"""Seconds of a job, with reading and measuring."""
EXPECTED = ("step_failed", "invalid_data", "unsupported_model")
"""Codes of errors by which a step or the engine says why not."""


CONTEXT = multiprocessing.get_context("forkserver")
"""Warm processes: importing takes longer than many a job."""


@dataclass(frozen=True)
class Cell:
    model: str
    step: str
    told: str
    reason: str = ""
    """Why there are no figures."""
    failed: bool = False


@dataclass(frozen=True)
class Subject:
    """A model of the zoo, made already."""

    name: str
    path: Path
    integers: dict[str, int]
    """Inputs that are integers: name → first value that is too large."""


def examine(subject: Subject, folder: Path | None, step: str) -> Cell:
    """One job, in a process of its own."""
    import torch  # noqa: PLC0415 (only in the child)

    from benchmarks.jobs import run_job  # noqa: PLC0415 (as above)

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    quick = {name: value for name, value in QUICK.items() if name in STEPS[step].model_fields}
    with tempfile.TemporaryDirectory() as scratch:
        result, _ = run_job(
            subject.path,
            [{"step": step} | quick | OPTIONS.get(step, {})],
            _data(subject, folder),
            Path(scratch) / "run",
            budget={"seconds": 300},
        )
    return judged(subject, step, result)


def judged(subject: Subject, step: str, result: RunResult) -> Cell:
    if result.error is not None:
        reason = f"{result.error.code}: {result.error.message}"
        return Cell(subject.name, step, "–", reason, failed=result.error.code not in EXPECTED)
    report = result.report
    assert report is not None
    done = report.steps[0]
    silent = not done.notes and not done.metrics
    latency = f"{report.latency[0].ratio:.2f}×" if report.latency else "?"
    if report.quality is not None and report.quality.n > EXAMPLES:
        lost = f"{-100 * report.quality.change:+.1f} pt"
    else:
        lost = f"{1 - report.agreement[0].cosine:.0e}" if report.agreement else "?"
    return Cell(subject.name, step, f"{report.size_ratio:.2f}×\n{latency}\n{lost}", failed=silent)


def _data(subject: Subject, folder: Path | None) -> dict[str, Arrays]:
    """Real data where the model was trained on some, else made-up inputs with the model's own answers as labels."""
    from benchmarks import jobs  # noqa: PLC0415 (only in the child)

    if (folder is not None and subject.name.startswith(("resnet-", "lenet5"))) or subject.name == "resnet":
        assert folder is not None
        train, evaluate = (jobs.fashion(folder, part, labelled=True) for part in ("train", "val"))
        return {"train": _first(train, TRAINED), "evaluate": _first(evaluate, TRAINED)}
    if folder is not None and subject.name.endswith("-vowels"):
        return jobs.vowels(folder, labelled=True)
    if subject.name.startswith("minilm"):
        data = jobs.encoded(jobs.HELD_OUT + 4 * EXAMPLES)
        return {"train": data["train"], "evaluate": _first(data["evaluate"], EXAMPLES)}
    made_up = _made_up(subject)
    return {"train": made_up, "evaluate": _first(made_up, EXAMPLES // 2)}


def _first(arrays: Arrays, examples: int) -> Arrays:
    return {name: array[:examples] for name, array in arrays.items()}


def _made_up(subject: Subject) -> Arrays:
    import torch  # noqa: PLC0415 (only in the child)

    from workers.engine.batching import answers  # noqa: PLC0415
    from workers.engine.readers import read_model  # noqa: PLC0415
    from workers.engine.shapes import example_inputs, propagate  # noqa: PLC0415

    _, graph = read_model(subject.path)
    one = example_inputs(graph, 1, propagate(graph, batch=1))
    examples = max(8, min(EXAMPLES, MOST_VALUES // max(1, sum(x.numel() for x in one))))
    generator = np.random.default_rng(0)
    arrays: Arrays = {}
    for spec, x in zip(graph.inputs, one, strict=True):
        shape, most = (examples, *x.shape[1:]), subject.integers.get(spec.name)
        if most == MASK:
            arrays[spec.name] = np.ones(shape, x.numpy().dtype)
        elif most:
            arrays[spec.name] = generator.integers(0, most, shape).astype(x.numpy().dtype)
        elif x.is_floating_point():
            arrays[spec.name] = generator.standard_normal(shape).astype(x.numpy().dtype)
        else:
            arrays[spec.name] = np.zeros(shape, x.numpy().dtype)
    first = graph.inputs[0].shape[0]
    with torch.no_grad():
        taken = tuple(map(torch.from_numpy, arrays.values()))
        answer = answers(graph, taken, first if isinstance(first, int) else None)[0]
    decides = answer.ndim == 2 and answer.shape[1] > 1
    return arrays | {"labels": (answer.argmax(1) if decides else answer).numpy()}


def _run(subjects: list[Subject], folder: Path | None, steps: list[str], at_a_time: int) -> Iterator[Cell]:
    """Each cell in a process of its own: what dies there is one cell's failure."""
    wanted = [(subject, step) for subject in subjects for step in steps]
    with ThreadPoolExecutor(at_a_time) as threads:
        for cell in threads.map(lambda pair: _alone(pair[0], folder, pair[1]), wanted):
            print(cell.model, cell.step, " ".join(cell.told.split()), cell.reason, flush=True, file=sys.stderr)
            yield cell


def _alone(subject: Subject, folder: Path | None, step: str) -> Cell:
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        try:
            return pool.submit(examine, subject, folder, step).result(timeout=LONGEST)
        except BrokenProcessPool:
            return Cell(subject.name, step, "died", "the process died", failed=True)
        except Exception as error:  # noqa: BLE001 (a crash is what this looks for)
            return Cell(subject.name, step, "crash", f"{type(error).__name__}: {error}", failed=True)


def _show(subjects: list[Subject], steps: list[str], cells: list[Cell]) -> None:
    found = {(cell.model, cell.step): cell for cell in cells}
    reasons: dict[str, int] = {}
    table = Table("model", *steps, show_lines=True)
    for subject in subjects:
        row = []
        for step in steps:
            cell = found[subject.name, step]
            mark = f" [{reasons.setdefault(cell.reason, len(reasons) + 1)}]" if cell.reason else ""
            row.append(escape(cell.told + mark))
        table.add_row(subject.name, *row)
    console = Console(width=20 + 16 * len(steps))
    console.print(table)
    for reason, number in reasons.items():
        console.print(escape(f"[{number}] {reason}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--steps", nargs="*", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--jobs", type=int, default=1, help="that run at a time, one thread each")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    entries = [e for e in zoo(arguments.cache, arguments.data).values() if e.name in (arguments.only or {e.name})]
    subjects = [Subject(entry.name, entry.path(), entry.integers) for entry in entries]
    CONTEXT.set_forkserver_preload(["benchmarks.jobs", *(f"workers.engine.steps.{name}" for name in STEPS)])
    cells = list(_run(subjects, arguments.data, arguments.steps, arguments.jobs))
    _show(subjects, arguments.steps, cells)
    silent = "did nothing and said nothing"
    failed = [f"{cell.model}: {cell.step}: {cell.reason or silent}" for cell in cells if cell.failed]
    print(f"{len(cells)} cells, {len(failed)} failed", *failed, sep="\n  ")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
