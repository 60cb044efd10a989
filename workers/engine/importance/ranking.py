"""Which units stay: by their scores, as many as a share says, in numbers that runtimes compute fast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.structure.groups import Group

FLOOR = 0.1
"""What one threshold for the whole model leaves of each group at least: a layer of nothing ends a network."""
ROUNDING = 1e-6
"""A product of share and size this little beside a whole number is meant to be one."""


@dataclass(frozen=True)
class Candidate:
    """A group that may lose units. `fixed`: the share that goes by the user's word, whatever the others do."""

    group: Group
    scores: Tensor
    round_to: int
    fixed: float | None = None

    @property
    def step(self) -> int:
        """Units are kept in multiples of this."""
        return step_of(self.group, self.round_to)

    def keep(self, wanted: float) -> Tensor:
        """Bool (units,): about this many stay, the most important."""
        count = max(1, math.floor(wanted / self.step + 0.5 + ROUNDING)) * self.step
        best = self.scores.cpu().argsort(descending=True, stable=True)[:count]
        return torch.zeros(self.group.units, dtype=torch.bool).index_fill(0, best, value=True)


def step_of(group: Group, round_to: int) -> int:
    """In how many units a group shrinks, so that every width that a unit is part of is a multiple of `round_to`.

    A head of 32 features is four times 8 already. Groups narrower than one multiple are not rounded.
    """
    width = min((slot.positions.shape[1] for slot in group.slots), default=1)
    multiple = round_to // math.gcd(round_to, width)
    return 1 if group.units < multiple else multiple


def uniform(candidates: Sequence[Candidate], share: float) -> dict[str, Tensor]:
    """Masks of the units that stay, by group, when this share of every group goes."""
    kept = {}
    for candidate in candidates:
        going = share if candidate.fixed is None else candidate.fixed
        if going:
            kept[candidate.group.name] = candidate.keep((1 - going) * candidate.group.units)
    return _changed(kept)


def least_important(candidates: Sequence[Candidate], share: float, *, comparable: bool) -> dict[str, Tensor]:
    """The same when this share of all units goes, those with the smallest scores of the whole model."""
    kept = uniform([candidate for candidate in candidates if candidate.fixed is not None], 0.0)
    pool = [candidate for candidate in candidates if candidate.fixed is None]
    if not pool:
        return kept
    scores = [c.scores.double().cpu() / (1 if comparable else c.scores.mean().clamp_min(1e-30)) for c in pool]
    everything = torch.cat(scores).sort(stable=True).values
    going = round(share * len(everything))
    threshold = everything[going - 1] if going else -math.inf
    for candidate, found in zip(pool, scores, strict=True):
        least = FLOOR * candidate.group.units
        kept[candidate.group.name] = candidate.keep(max(int((found > threshold).sum()), least))
    return _changed(kept)


def _changed(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask for name, mask in kept.items() if not mask.all()}
