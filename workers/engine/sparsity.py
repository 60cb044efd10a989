"""Weights that lose their smallest values: which may, what goes, and a schedule for losing them in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from modelpress.steps import LayerSelection
from workers.engine.constraints import Mask, raw_parameter
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.selection import selected, tell_untouched

SMALL = 16
"""A weight of fewer values than this saves nothing and may matter a lot."""
FLOOR = 0.02
"""One threshold for all layers leaves each this share of its weights at least: a layer of zeros ends a network."""
ROUNDING = 1e-6
"""A product of share and size this little above a whole number is meant to be one."""
RAMP = 0.7
"""Share of a training in which weights go; in the rest those that are left settle."""
CHANGES = 200
"""How often, in a whole training, the masks could change: each change sorts all weights."""


@dataclass(frozen=True)
class Pruned:
    """One weight that is to be pruned, and the other layers that use it too: a tied one is judged and counted once."""

    layer: Layer
    name: str
    tied: list[tuple[Layer, str]] = field(default_factory=list)

    @property
    def uses(self) -> list[tuple[Layer, str]]:
        return [(self.layer, self.name), *self.tied]

    def value(self) -> Tensor:
        """The weight as the layer uses it, so that what earlier steps zeroed counts as zero."""
        return self.layer.weights[self.name].detach()

    def magnitude(self) -> Tensor:
        return self.value().abs()

    def keep(self, kept: Tensor) -> None:
        """Zero all else, in place where there is a mask already. What was zero stays zero."""
        for mask in self.masks():
            mask.keep &= kept

    def masks(self) -> list[Mask]:
        """The mask of each layer that uses the weight; of all weights that are not zero, where it had none."""
        found = []
        for layer, name in self.uses:
            mask = next((one for one in layer.constraints(name) if isinstance(one, Mask)), None)
            if mask is None:
                mask = Mask(layer.weights[name].detach() != 0)
                layer.constrain(name, mask)
            found.append(mask)
        return found

    @property
    def input_axis(self) -> int:
        """The axis along which a product sums up."""
        channels, dims = self.layer.channel_axis(self.name), self.value().ndim
        if self.layer.op.name == "ConvTranspose" or channels == dims - 1:
            return channels - 1
        return channels + 1


def prunable(
    selection: LayerSelection,
    graph: Graph,
    context: Context,
    why_not: Callable[[Pruned], str | None] = lambda _: None,
) -> list[Pruned]:
    """The weights of the selected layers; what is left alone, also by the reasons of `why_not`, is told.

    Raises StepError where none is left.
    """
    weights: dict[Tensor, Pruned] = {}
    for layer in selected(selection, graph):
        reasons = {}
        for name in layer.weights:
            weight, raw = Pruned(layer, name), raw_parameter(layer.module, name)
            reason = _why_never(weight) or why_not(weight)
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


def _why_never(weight: Pruned) -> str | None:
    value = weight.value()
    if not value.isfinite().all():
        raise StepError(f"{weight.layer.name} holds weights that are not numbers: repair the model before pruning it")
    if value.ndim < 2:
        return "its weights are a vector: normalisation and scales are never pruned"
    if value.numel() < SMALL:
        return f"it has only {value.numel()} weights"
    return None


def without_smallest(scores: Sequence[Tensor], share: float) -> list[Tensor]:
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


def spared(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """The scores as one threshold for all layers compares them when this share goes.

    Those of each layer's largest are infinite, `FLOOR` of them and one at least.
    """
    staying = min(FLOOR, (1 - share) / 2)
    tops = [without_smallest([score], 1 - max(staying, 1 / score.numel()))[0] for score in scores]
    return [score.masked_fill(top, math.inf) for score, top in zip(scores, tops, strict=True)]


def staying(scores: Sequence[Tensor], share: float, scope: Literal["global", "layer"]) -> list[Tensor]:
    """Masks of what stays when the smallest go: this share of all, or the same share of each."""
    if scope == "layer":
        return [kept for score in scores for kept in without_smallest([score], share)]
    return without_smallest(spared(scores, share), share)


def relative(scores: Sequence[Tensor]) -> list[Tensor]:
    """Scores that can be compared between layers: each one's share of what stays of its layer when all below it go.

    LAMP (Lee et al., 2021, arXiv:2010.07611). The largest of a layer has 1, so that no layer goes as a whole.
    """
    found = []
    for score in scores:
        squares, order = score.flatten().double().square().sort(stable=True)
        staying = squares.flip(0).cumsum(0).flip(0)
        shares = torch.where(staying > 0, squares / staying, 0.0)
        found.append(torch.empty_like(shares).scatter(0, order, shares).view_as(score))
    return found


def losers(scores: Tensor, axis: int, n: int, m: int) -> Tensor:
    """The scores of all but the n largest of every m along the axis; those of the largest are infinite."""
    groups = scores.movedim(axis, -1).unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    return groups.scatter(-1, order[..., :n], math.inf).flatten(-2).movedim(-1, axis)


def sparsity(weights: Sequence[Pruned]) -> float:
    """The share of zeros among all these weights."""
    values = [weight.value() for weight in weights]
    return sum(int((value == 0).sum()) for value in values) / sum(value.numel() for value in values)


def sparsity_below(wanted: float, weights: Sequence[Pruned]) -> float:
    """The share of zeros, from which pruning begins. Raises StepError where it has reached what is wanted."""
    start = sparsity(weights)
    if start >= wanted:
        raise StepError(
            f"{start:.2%} of these weights are zero already: ask for a sparsity above that, or leave the step out"
        )
    return start


class Gradually:
    """A training schedule: the share that is zero grows from `start` to `end`, fast at first and slowly at last.

    Zhu & Gupta, 2017, arXiv:1710.01878. `prune` is told the share, some `CHANGES` times at most and at last `end`.
    """

    def __init__(self, start: float, end: float, prune: Callable[[float], None]) -> None:
        self._start, self._end, self._prune = start, end, prune
        self._next = 0.0
        self._done = False

    def advance(self, fraction: float) -> None:
        if self._done or fraction < min(self._next, RAMP):
            return
        self._next = fraction + 1 / CHANGES
        self._done = fraction >= RAMP
        left = 0.0 if self._done else (1 - fraction / RAMP) ** 3
        self._prune(self._end + (self._start - self._end) * left)

    def settled(self, fraction: float) -> bool:  # noqa: ARG002 (masks are final once they were told, not by the clock)
        return self._done
