"""Asking the teacher: on the training device, once an example where its answers are small enough to keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, fx

from workers.engine.batching import Batch, answers, batch_taken, training_data
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.watching import watched

CACHED_BYTES = 256 << 20
"""The answers are kept between epochs where all of them fit into this."""


class Teacher:
    """A context manager. A teacher that is a graph is moved to the device and back; any other is asked on the CPU."""

    size: int | None = None
    """The one batch size that it takes, in which it is then asked."""

    def __init__(self, context: Context) -> None:
        self._source, self._context, self._device = context.teacher, context, context.device
        self.graph = self._source if isinstance(self._source, Graph) else None
        self._asked: Callable[..., tuple[Tensor, ...]] = self._source
        self._home = torch.device("cpu")
        self._known = torch.zeros(training_data(context).examples, dtype=torch.bool)
        self._cache: list[Tensor] | None = None
        self._cached = True

    def __enter__(self) -> Self:
        if self.graph:
            self._home = next((p.device for p in self.graph.module.parameters()), self._home)
            self.graph.module.to(self._device)
            self.size = batch_taken(self.graph, training_data(self._context), self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.graph:
            self.graph.module.to(self._home)

    def watch(self, nodes: Sequence[fx.Node]) -> None:
        """From now on, the values of these nodes of its graph come after its answers."""
        if self.graph and nodes:
            self._asked = watched(self.graph.module, nodes)

    @torch.no_grad()
    def ask(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self._answers(inputs)
        examples = max((len(x) for x in inputs if x.ndim), default=1)
        if any(answer.shape[:1] != (examples,) for answer in found):  # such as (time, examples, classes)
            self._cached = False
        return found

    def _answers(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.graph:
            return tuple(answers(self._asked, inputs, self.size))
        return tuple(answer.to(self._device) for answer in self._source(*(x.cpu() for x in inputs)))

    def answers(self, batch: Batch) -> tuple[Tensor, ...]:
        """For these examples; from the cache where it knows all of them."""
        if self._cache and bool(self._known[batch.indices].all()):
            return tuple(kept[batch.indices].to(self._device) for kept in self._cache)
        answers = self.ask(*batch.inputs)
        if self._cached:
            self._remember(batch.indices, answers)
        return answers

    def _remember(self, indices: Tensor, answers: tuple[Tensor, ...]) -> None:
        examples = len(self._known)
        if self._cache is None:
            if sum(a.nbytes for a in answers) * examples > CACHED_BYTES * len(indices):
                self._cached = False
                return
            self._cache = [answer.new_empty((examples, *answer.shape[1:]), device="cpu") for answer in answers]
        if all(answer.shape[1:] == kept.shape[1:] for answer, kept in zip(answers, self._cache, strict=True)):
            for answer, kept in zip(answers, self._cache, strict=True):
                kept[indices] = answer.cpu()
            self._known[indices] = True
