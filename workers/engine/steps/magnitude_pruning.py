"""Set the smallest weights to zero and keep them there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from modelpress.steps.distillation import Distillation
from modelpress.steps.magnitude_pruning import MagnitudePruning
from workers.engine.constraints import Mask, raw_parameter
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.selection import selected, tell_untouched
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil

SMALL = 16
"""A weight of fewer values than this saves nothing and may matter a lot."""
FLOOR = 0.02
"""One threshold for all layers leaves each this share of its weights at least: a layer of zeros ends a network."""

ROUNDING = 1e-6
"""A product of share and size this little above a whole number is meant to be one."""


@dataclass(frozen=True)
class Pruned:
    """One weight that is to be pruned, and the other layers that use it too: a tied one is judged and counted once."""

    layer: Layer
    name: str
    tied: list[tuple[Layer, str]] = field(default_factory=list)

    def magnitude(self) -> Tensor:
        """Of the weight as the layer uses it, so that what earlier steps zeroed goes first and is counted."""
        return self.layer.weights[self.name].detach().abs()

    def keep(self, kept: Tensor) -> None:
        """Zero all else. An earlier mask is narrowed: what was zero stays zero."""
        for layer, name in ((self.layer, self.name), *self.tied):
            mask = next((found for found in layer.constraints(name) if isinstance(found, Mask)), None)
            if mask is None:
                layer.constrain(name, Mask(kept.clone()))
            else:
                mask.keep &= kept

    @property
    def input_axis(self) -> int:
        """The axis along which a product sums up."""
        channels, dims = self.layer.channel_axis(self.name), self.magnitude().ndim
        if self.layer.op.name == "ConvTranspose" or channels == dims - 1:
            return channels - 1
        return channels + 1


@applies(MagnitudePruning)
def magnitude_pruning(step: MagnitudePruning, graph: Graph, context: Context) -> Graph:
    weights = _selected(step, graph, context)
    if step.schedule == "cubic":
        _gradually(step, graph, context, weights)
    else:
        prune(weights, step, step.sparsity)
    zeros = sparsity(weights)
    total = sum(weight.magnitude().numel() for weight in weights)
    context.figures["sparsity"] = zeros
    context.notes.append(f"{zeros:.2%} of the {total} weights in {len(weights)} tensors are zero now")
    return graph


def prune(weights: list[Pruned], step: MagnitudePruning, share: float) -> None:
    """Zero this share of the weights, rounded up to a whole weight; what is zero already counts."""
    scores = [weight.magnitude() for weight in weights]
    if step.pattern == "2:4":
        scores = [losers(score, weight.input_axis) for score, weight in zip(scores, weights, strict=True)]
    elif step.scope == "global":
        scores = [spared(score, min(FLOOR, (1 - share) / 2)) for score in scores]
    if step.scope == "layer":
        kept = [kept for score in scores for kept in without_smallest([score], share)]
    else:
        kept = without_smallest(scores, share)
    for weight, keep in zip(weights, kept, strict=True):
        weight.keep(keep)


def without_smallest(scores: list[Tensor], share: float) -> list[Tensor]:
    """Masks of what stays when at least this share of all scores, the smallest, goes; of equal ones the first go."""
    flat = torch.cat([tensor.flatten() for tensor in scores])
    going = math.ceil(share * flat.numel() - ROUNDING)
    keep = torch.ones_like(flat, dtype=torch.bool)
    if going:
        threshold = flat.kthvalue(going).values
        keep = flat >= threshold
        ties = (flat == threshold).nonzero().flatten()
        keep[ties[: going - int((~keep).sum())]] = False
    parts = keep.split([tensor.numel() for tensor in scores])
    return [part.view_as(tensor) for part, tensor in zip(parts, scores, strict=True)]


def spared(magnitude: Tensor, share: float) -> Tensor:
    """The magnitudes; those of the largest, this share and one at least, are infinite."""
    (largest,) = without_smallest([magnitude], 1 - max(share, 1 / magnitude.numel()))
    return magnitude.masked_fill(largest, math.inf)


def losers(magnitude: Tensor, axis: int) -> Tensor:
    """The magnitudes of the two smallest of every four along the axis; all others are infinite."""
    groups = magnitude.movedim(axis, -1).unflatten(-1, (-1, 4))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    return groups.scatter(-1, order[..., :2], math.inf).flatten(-2).movedim(-1, axis)


def sparsity(weights: list[Pruned]) -> float:
    """The share of zeros among all these weights."""
    magnitudes = [weight.magnitude() for weight in weights]
    return sum(int((m == 0).sum()) for m in magnitudes) / sum(m.numel() for m in magnitudes)


def _gradually(step: MagnitudePruning, graph: Graph, context: Context, weights: list[Pruned]) -> None:
    """Zhu & Gupta's cubic schedule: much at first, little at the end, with distillation after each round."""
    start = sparsity(weights)
    recovery = Distillation(epochs=step.epochs)
    for done in range(step.rounds):
        share = step.sparsity + (start - step.sparsity) * (1 - (done + 1) / step.rounds) ** 3
        prune(weights, step, share)
        outcome = distil(recovery, graph, replace(context, progress=_part(context.progress, done, step.rounds)))
    context.notes.append(f"pruned in {step.rounds} rounds; distillation after the last: {outcome.told()}")
    context.figures.update(outcome.measured())


def _part(progress: Callable[[float, str], None], done: int, rounds: int) -> Callable[[float, str], None]:
    def tell(fraction: float, message: str) -> None:
        progress((done + fraction) / rounds, f"round {done + 1} of {rounds}: {message}")

    return tell


def _selected(step: MagnitudePruning, graph: Graph, context: Context) -> list[Pruned]:
    weights: dict[Tensor, Pruned] = {}
    for layer in selected(step.layers, graph):
        reasons = {}
        for name in layer.weights:
            weight, raw = Pruned(layer, name), raw_parameter(layer.module, name)
            reason = _why_not(weight, step)
            if reason is not None:
                reasons[name] = reason
            elif raw in weights:
                weights[raw].tied.append((layer, name))
            else:
                weights[raw] = weight
        tell_untouched(context, layer, reasons)
    if not weights:
        told = "; ".join(f"{name}: {reason}" for name, reason in context.untouched.items())
        raise StepError(f"none of the selected layers can be pruned ({told})")
    return list(weights.values())


def _why_not(weight: Pruned, step: MagnitudePruning) -> str | None:
    magnitude = weight.magnitude()
    if not magnitude.isfinite().all():
        raise StepError(f"{weight.layer.name} holds weights that are not numbers: repair the model before pruning it")
    if magnitude.ndim < 2:
        return "its weights are a vector: normalisation and scales are never pruned"
    if magnitude.numel() < SMALL:
        return f"it has only {magnitude.numel()} weights"
    if step.pattern == "2:4" and magnitude.shape[weight.input_axis] % 4:
        return f"2:4 needs inputs in fours and it has {magnitude.shape[weight.input_axis]}"
    return None
