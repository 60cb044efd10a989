"""Inputs on which the batch norms of a model see the statistics that they learnt in its training.

Cai et al., 2020 (ZeroQ), arXiv:2001.00281; Yin et al., 2020 (DeepInversion), arXiv:1912.08795.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from workers.engine.graph import Graph
from workers.engine.losses import as_rows, logits, scores_of
from workers.engine.ops.normalization import BatchNorm
from workers.engine.watching import watched

UPDATES = 40
RATE = 0.1
"""Of Adam, in units of the inputs' spread."""
SCALES = ((0.0, 1.0), (0.5, 0.25), (0.0, 8.0), (128.0, 64.0))
"""Mean and spread that inputs may have; the model's first batch norms know which is right."""
MEMORY = 512 << 20
"""That one batch may take."""
KEPT = 4
"""Copies of what a batch norm takes that are about at once while gradients are computed."""
LARGEST_BATCH, FEWEST = 128, 32
BALANCE = 0.1
"""Weight of the classes' balance: on a ResNet it makes the rarest of ten as frequent as 65 of 1,024, from 38."""


@dataclass(frozen=True)
class Inverted:
    inputs: list[Tensor]
    """Of all examples, on the CPU."""
    matched: int
    """How many of them are more than a guess."""
    norms: int
    started_at: float
    """How far the statistics were off at first, in units of the deviation of each channel, and at the end."""
    ended_at: float


class Inversion:
    """For graphs with batch norms that gradients reach; `usable` says whether this is one."""

    def __init__(self, graph: Graph, device: torch.device, size: int | None, classes: tuple[int, int] | None) -> None:
        """`size`: the one batch size that the graph, on this device, takes, or None.

        `classes`: the output that has class scores, and the axis of them, so that all come among the answers.
        """
        self._device, self._size, self._classes = device, size, classes
        calls = [node for node in graph.module.graph.nodes if node.op == "call_module"]
        leaves = [(node, graph.module.get_submodule(str(node.target))) for node in calls]
        found = [(node, leaf) for node, leaf in leaves if isinstance(leaf, BatchNorm)]
        self._norms = [leaf for _, leaf in found]
        sources = [node.args[0] for node, _ in found]
        self._module = watched(graph.module, [source for source in sources if isinstance(source, fx.Node)])

    @property
    def norms(self) -> int:
        return len(self._norms)

    def usable(self, guessed: Sequence[Tensor]) -> bool:
        """Whether gradients come from the batch norms back to an input. `guessed`: inputs of a few examples."""
        if not self._norms:
            return False
        with torch.enable_grad():
            inputs = [x.to(self._device).clone() for x in guessed]
            floats = [x.requires_grad_() for x in inputs if x.is_floating_point()]
            loss = self._loss(inputs)
            return (
                bool(floats)
                and loss.requires_grad
                and any(grad is not None for grad in torch.autograd.grad(loss, floats, allow_unused=True))
            )

    def run(self, guessed: Sequence[Tensor], seconds: float) -> Inverted:
        """From the guesses on, batch by batch, as many as there is time for, and one batch at least.

        Guesses make up for what is missing of FEWEST.
        """
        ends = time.monotonic() + seconds
        examples = max(len(x) for x in guessed if x.ndim)
        batch = self._batch(guessed)
        made: list[list[Tensor]] = []
        scale = self._scale(self._some(guessed, 0, batch))
        first = last = math.inf
        began = time.monotonic()
        for start in range(0, examples, batch):
            spent = time.monotonic() - began
            if made and time.monotonic() + spent / len(made) > ends:
                break
            inputs, before, last = self._match(self._some(guessed, start, batch), scale, ends)
            first = min(first, before) if not made else first
            made.append(inputs)
        matched = min(len(made) * batch, examples)
        if matched < FEWEST:
            rest = self._some(guessed, matched, FEWEST // batch * batch + batch - matched)
            made.append([_scaled(x, scale).cpu() for x in rest])
        joined = [torch.cat(parts) if parts[0].ndim else parts[0] for parts in zip(*made, strict=True)]
        return Inverted(joined, matched, len(self._norms), first, last)

    def _some(self, guessed: Sequence[Tensor], start: int, batch: int) -> list[Tensor]:
        return [(x[start : start + batch] if x.ndim else x).to(self._device) for x in guessed]

    def _match(
        self, inputs: list[Tensor], scale: tuple[float, float], ends: float
    ) -> tuple[list[Tensor], float, float]:
        """The inputs, changed so that the statistics fit; how far these were off before and after."""
        inputs = [_scaled(x, scale) for x in inputs]
        free = [x.requires_grad_() for x in inputs if x.is_floating_point()]
        adam = torch.optim.Adam(free, lr=RATE * scale[1])
        first = last = math.inf
        with torch.enable_grad():
            for update in range(UPDATES):
                loss, onesided = self._losses(inputs)
                last = float(loss.detach())
                first = last if update == 0 else first
                for group in adam.param_groups:
                    group["lr"] = RATE * scale[1] * (1 + math.cos(math.pi * update / UPDATES)) / 2
                for x, grad in zip(free, torch.autograd.grad(loss + onesided, free, allow_unused=True), strict=True):
                    x.grad = grad
                adam.step()
                if time.monotonic() > ends:
                    break
        return [x.detach().cpu() for x in inputs], math.sqrt(first), math.sqrt(last)

    def _loss(self, inputs: Sequence[Tensor]) -> Tensor:
        return self._losses(inputs)[0]

    def _losses(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """How far the statistics are off, and a share of how far the classes are from coming equally often.

        Mean over the batch norms of the squares by which means and deviations are off, in units of the deviation.
        """
        answers = self._answers(inputs)
        off = []
        for value, norm in zip(answers[len(answers) - len(self._norms) :], self._norms, strict=True):
            mean, variance = norm.statistics
            deviation = (variance + norm.eps).sqrt()
            dims = [0, *range(2, value.ndim)]
            seen = (value.var(dims, correction=0) + norm.eps).sqrt()
            means = (value.mean(dims) - mean) / deviation
            off.append(means.square().mean() + (seen / deviation - 1).square().mean())
        return torch.stack(off).mean(), self._onesided(answers)

    def _onesided(self, answers: list[Tensor]) -> Tensor:
        if self._classes is None:
            return torch.zeros(())
        output, axis = self._classes
        rows = as_rows(answers[output], axis)
        shares = torch.softmax(logits(rows, scores_of(rows.detach())), -1).flatten(0, -2).mean(0).clamp_min(1e-6)
        return BALANCE * (shares * shares.log()).sum()

    def _answers(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs, then what each batch norm takes, of all these examples."""
        examples = max(len(x) for x in inputs if x.ndim)
        size = self._size or examples
        asked = [
            self._module(*(x[start : start + size] if x.ndim else x for x in inputs))
            for start in range(0, examples, size)
        ]
        return [torch.cat(parts).float() if parts[0].ndim else parts[0] for parts in zip(*asked, strict=True)]

    @torch.no_grad()
    def _scale(self, inputs: list[Tensor]) -> tuple[float, float]:
        losses = [float(self._loss([_scaled(x, scale) for x in inputs])) for scale in SCALES]
        usable = [loss if math.isfinite(loss) else math.inf for loss in losses]
        return SCALES[usable.index(min(usable))]

    @torch.no_grad()
    def _batch(self, guessed: Sequence[Tensor]) -> int:
        """As many examples as go into the memory, in whole batches of a graph that takes one size only."""
        size = self._size or 1
        taken = sum(answer.nbytes for answer in self._answers(self._some(guessed, 0, size))) * KEPT / size
        return max(1, min(LARGEST_BATCH, int(MEMORY / max(taken, 1))) // size) * size


def _scaled(x: Tensor, scale: tuple[float, float]) -> Tensor:
    return x * scale[1] + scale[0] if x.is_floating_point() else x
