"""The length of all weights that make and take a unit, taken as one vector (Fang et al., 2023, arXiv:2301.12900)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.context import Context
from workers.engine.importance import importance
from workers.engine.importance.units import Units


@importance("l2")
def l2(groups: Sequence[Units], context: Context) -> list[Tensor]:  # noqa: ARG001 (weights alone decide)
    return [
        torch.stack([rows.square().sum(1) for rows in units.weights("makes", "takes")]).sum(0).sqrt()
        for units in groups
    ]
