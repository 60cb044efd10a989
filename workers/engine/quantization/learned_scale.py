"""Constraints with a scale for each channel that is trained together with the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workers.engine.constraints import Constraint


class LearnedScale(Constraint):
    """The scale is trained as the logarithm of a factor: an update moves a small one by the same share as a large one,
    no decay pulls it to zero and none changes its sign.
    """

    start: Tensor
    """The scales before the training, of the weight's rank: as long as it along `axes`, else 1."""

    def __init__(self, start: Tensor, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        self.register_buffer("start", start.detach().clone().float())
        self.growth = nn.Parameter(torch.zeros_like(self.start))

    @property
    def scale(self) -> Tensor:
        return self.start * self.growth.exp()

    def narrow(self, axis: int, index: Tensor) -> None:
        if axis in self.axes:
            self.start = self.start.index_select(axis, index)
            self.growth = nn.Parameter(self.growth.detach().index_select(axis, index))


def inner_axes(weight: Tensor, axes: tuple[int, ...]) -> list[int]:
    """The axes over which a channel reaches."""
    return [axis for axis in range(weight.dim()) if axis not in axes]
