"""How far a training is, by its updates and by the clock, and which examples each update takes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from modelpress.steps.training import TrainingStep
from workers.engine.batching import fixed_batch, training_data, whole
from workers.engine.context import Context
from workers.engine.graph import Graph

FEWEST_EPOCHS, MOST_EPOCHS, FEWEST_UPDATES = 3, 1000, 300
"""How long is trained where nobody says: 9 updates on 270 sequences leave an 80 % sparse GRU at .94, 60 bring .976."""
SOON = 10
"""Updates before which the clock says nothing of how long all will take."""


class Split:
    """The examples to train on, and those held out to judge by: the same for a seed."""

    def __init__(self, graph: Graph, options: TrainingStep, context: Context) -> None:
        data = training_data(context)
        self.order = torch.Generator().manual_seed(context.seed)
        shuffled = torch.randperm(data.examples, generator=self.order)
        self.size = fixed_batch(graph, context)
        """The one batch size that the graph takes, or None."""
        held = _held_out(data.examples, options.validation, self.size)
        self.held_out, self.examples = shuffled[:held], shuffled[held:]
        if self.size:
            self.examples = whole(self.examples, self.size)
        self.batches = max(1, len(self.examples) // max(options.batch_size, self.size or 0))
        """Updates an epoch."""
        fewest = min(max(FEWEST_EPOCHS, math.ceil(FEWEST_UPDATES / self.batches)), MOST_EPOCHS)
        self.epochs = options.epochs or fewest

    def shuffled(self) -> Iterator[torch.Tensor]:
        """The training examples in a new order, in even batches: no rest of one that a batch norm could not take."""
        order = self.examples[torch.randperm(len(self.examples), generator=self.order)]
        if self.size is None:
            yield from torch.tensor_split(order, self.batches)
        else:
            groups = torch.tensor_split(order.view(-1, self.size), self.batches)
            yield from (group.flatten() for group in groups)


class Clock:
    def __init__(self, updates: int, options: TrainingStep, context: Context) -> None:
        """`updates`: in the whole training."""
        self._updates, self._deadline, self._seconds = updates, context.deadline, options.seconds or math.inf
        self.reached = 0.0
        """The largest fraction so far."""
        self.start(0.0)

    def start(self, spent: float) -> None:
        """`spent`: seconds that earlier attempts have taken of those that the training may take."""
        self._began = time.monotonic() - spent
        self._limit = min(self._deadline - self._began, self._seconds)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def ends_within(self, seconds: float) -> bool:
        return self.elapsed + seconds >= self._limit

    def fraction(self, updates: int) -> float:
        """How far the schedule is: by updates, or by the clock where time would run out first. Never falls."""
        done, elapsed = updates / self._updates, self.elapsed / self._limit
        if updates >= SOON and elapsed > done:
            done = min(elapsed, 1.0)
        self.reached = max(self.reached, done)
        return self.reached


def _held_out(examples: int, share: float, size: int | None) -> int:
    """How many examples are held out: in whole batches, rounded up, as long as one batch is left to train on."""
    if size is None:
        return min(int(examples * share), examples - 2)
    return min(math.ceil(examples * share / size), examples // size - 1) * size
