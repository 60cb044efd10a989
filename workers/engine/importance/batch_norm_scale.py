"""The absolute scale of the batch norms behind a unit (network slimming, Liu et al., 2017, arXiv:1708.06519)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.importance import importance
from workers.engine.importance.l2 import l2
from workers.engine.importance.units import Units
from workers.engine.ops.base import op_of_module


@importance("batch_norm_scale", comparable=True)
def batch_norm_scale(groups: Sequence[Units], context: Context) -> list[Tensor]:
    """Groups without a batch norm are ranked by l2, brought to the mean scale of the others."""
    scales = [_scale(units) for units in groups]
    known = [scale for scale in scales if scale is not None]
    if not known:
        raise StepError(
            "batch_norm_scale: no batch norm scales what may be removed; exporters often fold them into the layers "
            "before: export in training mode without folding, or choose another importance"
        )
    without = [units for units, scale in zip(groups, scales, strict=True) if scale is None]
    if without:
        names = ", ".join(units.group.name for units in without)
        context.notes.append(f"no batch norm scales the units of {names}: l2 ranked them")
    mean = float(torch.cat(known).mean())
    others = iter(l2(without, context))
    return [scale if scale is not None else _with_mean(next(others), mean) for scale in scales]


def _scale(units: Units) -> Tensor | None:
    found = []
    for slot in units.slots("scales"):
        op = op_of_module(units.owner(slot))
        if slot.name == "weight" and op is not None and op.name == "BatchNormalization":
            positions = slot.positions
            found.append(units.used(slot)[positions.flatten()].abs().view(positions.shape).mean(1))
    return torch.stack(found).mean(0) if found else None


def _with_mean(scores: Tensor, mean: float) -> Tensor:
    return scores * (mean / scores.mean().clamp_min(1e-12))
