"""What a step may ask for while it works: data, the teacher, the device, and where to tell what it does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from modelpress.jobs import Extra, Runtime, TaskKind
from workers.engine.graph import Graph


class Batches(Protocol):
    """Examples of a dataset that fit the model: inputs in the order of `Graph.inputs`, and labels if there are any."""

    @property
    def examples(self) -> int: ...

    @property
    def labelled(self) -> bool: ...

    def take(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Inputs (each of shape (len(indices), …)) and labels of these examples, on the CPU."""


class Graphlike(Protocol):
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]: ...


@dataclass
class Context:
    train: Batches | None
    calibrate: Batches | None
    """Falls back to `train`, then to synthetic inputs; None only where those cannot be made either."""
    teacher: Graphlike
    """Answers as the original (or the uploaded teacher) does; in eval mode, no gradients."""
    original: Graphlike
    device: torch.device
    runtime: Runtime
    """Never `auto`: resolved before the steps run."""
    task: TaskKind
    output: int
    """Index of the output that is judged."""
    class_axis: int | None
    """Its axis that holds the class scores; None where there is none, so that each answer decides for itself."""
    seed: int
    deadline: float
    """On `time.monotonic()`."""
    progress: Callable[[float, str], None]
    """Fraction of the running step and a message."""
    metric: Callable[[dict[str, float]], None]
    blank: int = 0
    """Of CTC: the class that stands for nothing."""
    notes: list[str] = field(default_factory=list)
    """What the running step did, left alone and why; goes into the report."""
    warnings: list[str] = field(default_factory=list)
    """What the user should know before using the result: an option that had no effect, for one."""
    figures: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    """Figures that come again and again, such as the accuracy after each round, in their order; for the report."""
    extras: dict[Extra, Graph] = field(default_factory=dict)
    """Models that are given out beside the result. They are a step's own copies, which nobody changes afterwards."""
    untouched: dict[str, str] = field(default_factory=dict)
    """Layer name: why the step left it alone."""
    checkpoints: Path | None = None
    """A folder for this step alone that outlives the attempt at the job; None where nothing would come back to it.

    It holds what the same step of an earlier attempt has left, or nothing; it is read as hostile input.
    Files appear in it by renaming, and only the newest few are kept.
    """
    trainings: Iterator[int] = field(default_factory=itertools.count)
    """Numbers the trainings of a recipe, as steps may train more than once; copies of a context count on together."""
