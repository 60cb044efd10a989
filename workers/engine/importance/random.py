"""Chance: what every other importance must beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.context import Context
from workers.engine.importance import importance
from workers.engine.importance.units import Units


@importance("random", comparable=True)
def random(groups: Sequence[Units], context: Context) -> list[Tensor]:
    generator = torch.Generator().manual_seed(context.seed)
    return [torch.rand(units.group.units, generator=generator) for units in groups]
