"""Steps applied to a graph without a job around them: no data, no report."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

import torch

from modelpress.steps import STEPS
from workers.engine.context import Context
from workers.engine.data.batches import SyntheticBatches
from workers.engine.graph import Graph
from workers.engine.inspection import signature
from workers.engine.steps import APPLY


def apply_steps(graph: Graph, recipe: Sequence[dict[str, Any]], free: int = 16) -> tuple[Graph, list[str]]:
    """A changed copy, and what the steps noted. Raises EngineError where a step cannot go on."""
    result, notes = graph.copy(), []
    for options in recipe:
        step = STEPS[options["step"]](**options)
        importlib.import_module(f"workers.engine.steps.{step.step}")
        context = Context(
            train=None,
            calibrate=SyntheticBatches(signature(graph), 0, free),
            teacher=graph,
            original=graph,
            device=torch.device("cpu"),
            runtime="cpu-avx2",
            task="none",
            output=0,
            class_axis=None,
            seed=0,
            deadline=time.monotonic() + 3600,
            progress=lambda _fraction, _message: None,
            metric=lambda _values: None,
        )
        result = APPLY[type(step)](step, result, context)
        notes += context.notes
    return result, notes
