"""Set the weights to zero that training moves towards it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from modelpress.steps.movement_pruning import MovementPruning
from workers.engine.constraints import Constraint, Mask
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.reach import Reach
from workers.engine.sparsity import Gradually, Pruned, prunable, sparsity, sparsity_below, staying
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil

START = 1e-6
"""Scores start at their weight's share of the layer's largest, times this: what never moves goes by its size."""


class Scores(Constraint):
    """Zeroes of the weights with the smallest scores, which learn what each zero costs: straight through the mask.

    A score's gradient is that of its weight times the weight: it falls where the training takes the weight to zero.
    """

    keep: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        size = weight.detach().abs()
        self.alive = size > 0
        self.scores = nn.Parameter(START * size / size.max().clamp_min(1e-30))
        self.register_buffer("keep", self.alive.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.keep.to(weight.dtype) + (self.scores - self.scores.detach()))

    def judged(self) -> Tensor:
        """The scores; zeros of earlier steps are below all others."""
        return self.scores.detach().masked_fill(~self.alive.to(self.scores.device), -math.inf)


@applies(MovementPruning)
def movement_pruning(step: MovementPruning, graph: Graph, context: Context) -> Graph:
    weights = prunable(step.layers, graph, context, Reach(graph, context).why_not)
    start = sparsity_below(step.sparsity, weights)
    scores = [_scored(weight) for weight in weights]
    outcome = distil(step, graph, context, Gradually(start, step.sparsity, lambda share: _prune(step, scores, share)))
    for weight in weights:
        _settle(weight)
    total = sum(weight.value().numel() for weight in weights)
    context.figures |= {"sparsity": sparsity(weights)} | outcome.measured()
    context.notes += [
        f"pruned while it was trained: {outcome.told()}",
        f"{sparsity(weights):.2%} of the {total} weights in {len(weights)} tensors are zero now",
    ]
    return graph


def _scored(weight: Pruned) -> Scores:
    """One for all layers that use the weight."""
    scores = Scores(weight.value())
    for layer, name in weight.uses:
        layer.constrain(name, scores)
    return scores


def _prune(step: MovementPruning, scores: Sequence[Scores], share: float) -> None:
    kept = staying([each.judged() for each in scores], share, step.scope)
    for each, keep in zip(scores, kept, strict=True):
        each.keep.copy_(keep & each.alive.to(keep.device))


def _settle(weight: Pruned) -> None:
    """A plain mask in the place of the scores, or joined with the one that an earlier step has left."""
    for layer, name in weight.uses:
        chain: Any = layer.module.parametrizations[name]  # type: ignore[index]  # a ModuleDict
        place = next(index for index, constraint in enumerate(chain) if isinstance(constraint, Scores))
        keep = chain[place].keep
        earlier = next((constraint for constraint in chain if isinstance(constraint, Mask)), None)
        if earlier is None:
            chain[place] = Mask(keep.clone())
        else:
            earlier.keep &= keep
            del chain[place]
