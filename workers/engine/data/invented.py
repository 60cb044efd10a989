"""Inputs for a job without data, made up when a step first asks for them."""

from __future__ import annotations

import math
import time
from functools import cached_property

import torch
from torch import Tensor

from modelpress.models import Signature
from workers.engine.batching import batch_taken
from workers.engine.data.batches import SyntheticBatches, shape_of
from workers.engine.data.guesses import guess
from workers.engine.data.inversion import Inversion, Inverted
from workers.engine.graph import Graph
from workers.engine.ops.convolution import Conv

TO_CALIBRATE, TO_TRAIN = 256, 1024
"""Examples, where they are small."""
VALUES = 32 << 20
PROBED = 2
MOST_SECONDS, SHARE = 180.0, 0.25
"""That making them up may take; of the time that is left."""
FOLDED = (
    "; the model has no batch norms that would tell what it was trained on (exporters fold them into the layers "
    "before: upload a file that still has them, or some hundred real inputs)"
)
OUT_OF_REACH = "; no gradient comes from the model's batch norms to its inputs"


class InventedBatches(SyntheticBatches):
    """From the model's batch norms where it has any, else from shapes, types and tables; the same for a seed."""

    def __init__(
        self, graph: Graph, *, seed: int, free: int, deadline: float, train: bool, classes: tuple[int, int] | None
    ) -> None:
        """`graph`: the original. `deadline`: on `time.monotonic()`. `train`: whether they are trained on, too.

        `classes`: the output that has class scores and its axis of them, if any.
        """
        super().__init__(Signature(inputs=graph.inputs, outputs=graph.outputs), seed, free)
        self._classes = classes
        self._graph, self._deadline, self._train = graph, deadline, train
        self._news: list[str] = []

    @cached_property
    def inputs(self) -> list[Tensor]:
        plain = SyntheticBatches(self.signature, self.seed, self.free)
        device = next((p.device for p in self._graph.module.parameters()), torch.device("cpu"))
        size = batch_taken(self._graph, plain, device)
        examples = self.shown(TO_TRAIN if self._train else TO_CALIBRATE, VALUES)
        examples = examples if size is None else math.ceil(examples / size) * size
        chance = torch.Generator().manual_seed(self.seed)
        guesses = [guess(self._graph, spec, shape_of(spec, examples, self.free), chance) for spec in self._graph.inputs]
        guessed = [found.values for found in guesses]
        if not self._runs(_some(guessed, size or PROBED), device):
            self._news.append("no data: made-up inputs of noise, zeros and ones")
            return plain.inputs
        inversion = Inversion(self._graph, device, size, self._classes)
        if not inversion.usable(_some(guessed, size or PROBED)):
            told = f"no data: {examples} made-up inputs, {', '.join(g.told for g in guesses)}"
            self._news.append(told + (OUT_OF_REACH if inversion.norms else FOLDED if self._convolves() else ""))
            return guessed
        inverted = inversion.run(guessed, min(MOST_SECONDS, SHARE * (self._deadline - time.monotonic())))
        self._news.append(_told(inverted, examples))
        return inverted.inputs

    def news(self) -> list[str]:
        """How they were made, told once."""
        told, self._news = self._news, []
        return told

    def _convolves(self) -> bool:
        """Whether it may have had batch norms that are folded by now."""
        return any(isinstance(leaf, Conv) for leaf in self._graph.module.modules())

    @torch.no_grad()
    def _runs(self, inputs: list[Tensor], device: torch.device) -> bool:
        try:
            answers = self._graph(*(x.to(device) for x in inputs))
        except (RuntimeError, IndexError, ValueError):
            return False
        return all(bool(torch.isfinite(answer).all()) for answer in answers if answer.is_floating_point())


def _some(inputs: list[Tensor], examples: int) -> list[Tensor]:
    return [x[:examples] if x.ndim else x for x in inputs]


def _told(inverted: Inverted, wanted: int) -> str:
    examples = max(len(x) for x in inverted.inputs if x.ndim)
    rest = "" if examples == inverted.matched else f"; the other {examples - inverted.matched} are noise"
    fewer = "" if inverted.matched == wanted else f" (the time allowed no more; {wanted} would do better{rest})"
    return (
        f"no data: {inverted.matched} made-up inputs{fewer}, on which the {inverted.norms} batch norms see the "
        f"statistics of the training: they are off by {inverted.started_at:.2f} deviations in noise, and by "
        f"{inverted.ended_at:.2f} in these"
    )
