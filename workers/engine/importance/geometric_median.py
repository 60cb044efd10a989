"""The distance to all other units of the group: one near their geometric median is what others can stand in for.

FPGM, He et al., 2019, arXiv:1811.00250.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.context import Context
from workers.engine.importance import importance
from workers.engine.importance.units import Units


@importance("geometric_median")
def geometric_median(groups: Sequence[Units], context: Context) -> list[Tensor]:  # noqa: ARG001 (weights alone decide)
    """By the weights that make the units; by those that take them where no matrix makes them."""
    return [_distances(units.weights("makes") or units.weights("takes")) for units in groups]


def _distances(parts: list[Tensor]) -> Tensor:
    """Of each row to all others, in all parts at once; one part at a time, so that no long rows are copied together."""
    squares = torch.stack([torch.cdist(rows, rows).square() for rows in parts]).sum(0)
    return squares.sqrt().sum(1)
