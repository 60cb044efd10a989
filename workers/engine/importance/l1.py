"""The sum of the absolute weights that make and take a unit (Li et al., 2017, arXiv:1608.08710)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.context import Context
from workers.engine.importance import importance
from workers.engine.importance.units import Units


@importance("l1")
def l1(groups: Sequence[Units], context: Context) -> list[Tensor]:  # noqa: ARG001 (weights alone decide)
    return [torch.stack([rows.abs().sum(1) for rows in units.weights("makes", "takes")]).sum(0) for units in groups]
