"""The steps of a recipe, one after the other, each with its own notes and its share of the progress."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelpress.jobs import Extra
from modelpress.report import StepReport
from modelpress.steps import STEPS, AnyStep, Data, IllegalOrderError, Step, check_order
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.data.invented import InventedBatches
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.interface.cutting import after_cut
from workers.engine.reporter import Reporter
from workers.engine.selection import idle_patterns
from workers.engine.steps import APPLY


@dataclass
class Applied:
    graph: Graph
    steps: list[StepReport] = field(default_factory=list)
    untouched: dict[str, str] = field(default_factory=dict)
    """Layer name: which steps left it alone, and why."""
    extras: dict[Extra, Graph] = field(default_factory=dict)


def load_steps() -> None:
    """Import the module of every step in the catalogue. Raises ImportError where one is missing."""
    for name in STEPS:
        importlib.import_module(f"workers.engine.steps.{name}")


def check_recipe(recipe: list[AnyStep], context: Context) -> None:
    """Raises StepError for an illegal order, and for data that a step cannot do without."""
    try:
        check_order(recipe)
    except IllegalOrderError as error:
        raise StepError(str(error)) from error
    for step in recipe:
        trains = step.data_needed() in (Data.UNLABELLED, Data.TRAIN)
        if trains and context.train is None and not step.makes_up():
            raise StepError(f"{step.step} needs training data: send a dataset as data.train")
        if step.reads_labels() and context.train is not None and not context.train.labelled:
            raise StepError(f"{step.step} needs labels, and data.train has none: name their array in task.label")


def apply_recipe(recipe: Sequence[Step], graph: Graph, context: Context, reporter: Reporter) -> Applied:
    """`graph` is the steps' to change. Raises EngineError where a step cannot go on."""
    load_steps()
    applied, cut = Applied(graph), graph.cut
    for index, step in enumerate(recipe):
        reporter.begin(index + 1)
        for pattern in idle_patterns(step, applied.graph):
            reporter.warn(f"{step.step}: the pattern {pattern!r} matches the name of no layer")
        own = replace(
            context,
            notes=[],
            warnings=[],
            figures={},
            series={},
            extras={},
            untouched={},
            checkpoints=_folder(context.checkpoints, index),
            progress=reporter.progress,
            metric=reporter.metric,
        )
        began = time.monotonic()
        if own.train is None and step.makes_up() and step.data_needed() == Data.UNLABELLED:
            own.train = context.calibrate
            if not isinstance(context.calibrate, SyntheticBatches):
                own.notes.append("there is no training data: it trains on the inputs for calibration")
        applied.graph = APPLY[type(step)](step, applied.graph, own)
        applied.graph.module.eval()
        if isinstance(context.calibrate, InventedBatches):
            own.notes.extend(context.calibrate.news())
        if applied.graph.cut != cut:
            context, cut = after_cut(context, applied.graph), applied.graph.cut
        for warning in own.warnings:
            reporter.warn(f"{step.step}: {warning}")
        applied.steps.append(
            StepReport(
                step=step.step,
                seconds=time.monotonic() - began,
                notes=tuple(own.notes),
                metrics=_finite(own.figures),
                series={name: _gaps(values) for name, values in own.series.items()},
            )
        )
        applied.extras |= own.extras
        for layer, why in own.untouched.items():
            said = f"{step.step}: {why}"
            applied.untouched[layer] = "; ".join(filter(None, (applied.untouched.get(layer), said)))
    return applied


def _folder(checkpoints: Path | None, index: int) -> Path | None:
    """Of the step at this place of the recipe."""
    if checkpoints is None:
        return None
    own = checkpoints / str(index)
    own.mkdir(exist_ok=True)
    return own


def _gaps(values: Sequence[float]) -> tuple[float | None, ...]:
    """The same, with None for what JSON has not, so that every value keeps its place."""
    return tuple(value if math.isfinite(value) else None for value in values)


def _finite(figures: dict[str, float]) -> dict[str, float]:
    """JSON has no NaN and no infinity."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}
