"""Grids of few integers whose step is trained together with the weights (LSQ, Esser et al., arXiv:1902.08153)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from workers.engine.constraints import Constraint
from workers.engine.encodings import Codebook, Encoding, ScaledIntegers
from workers.engine.quantization.grid import SMALLEST_SCALE

TRIED = 32
"""Steps that are tried for each channel, from the one that just holds its largest weight down to a fifth of that."""
LEAST = 0.2
STORED_BITS = {2: 2.0, 3: 4.0, 4: 4.0, 8: 8.0}
"""By the bits of a grid: files hold 1, 2, 4 or 8 bits a value."""


class _OnGrid(torch.autograd.Function):
    """value → clamp(round(value / step), low, high) × step, with LSQ's gradients, that of the step times `share`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, step: Tensor, low: int, high: int, share: float) -> Tensor:
        scaled = value / step
        integers = scaled.round().clamp(low, high)
        ctx.save_for_backward(scaled, integers, step)
        ctx.bounds, ctx.share = (low, high), share
        return integers * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (gradient,) = gradients
        scaled, integers, step = ctx.saved_tensors
        low, high = ctx.bounds
        inside = (scaled >= low) & (scaled <= high)
        by_step = torch.where(inside, integers - scaled, integers)
        return (
            gradient * inside,
            (gradient * by_step).sum_to_size(step.shape) * ctx.share,
            None,
            None,
            None,
        )


def on_grid(value: Tensor, step: Tensor, low: int, high: int, share: float = 1.0) -> Tensor:
    """The value on the grid of whole steps from `low` to `high`; the step, which broadcasts, may be negative.

    Inside of the grid gradients pass straight through. A step's gradient is how far its values moved by rounding, or
    the bound at which they were cut off, times `share`.
    """
    result: Tensor = _OnGrid.apply(value, step, low, high, share)  # type: ignore[no-untyped-call]  # of torch
    return result


class LearnedGrid(Constraint):
    """weight → step × integer, of 2, 3, 4 or 8 bits; the step is trained. Zero stays zero.

    Below 8 bits there is one integer more on the negative side, -2, -1, 0 and 1 of two bits: a channel whose large
    weights are positive has a negative step. The step is trained as the logarithm of a factor, so that an update moves
    a small one by the same share as a large one, no decay pulls it to zero and none changes its sign.
    """

    start: Tensor
    """The steps before the training, of the weight's rank: as long as it along `axes`, else 1."""

    def __init__(self, start: Tensor, axes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.axes = axes
        self.width = width
        self.bits = STORED_BITS[width]
        self.register_buffer("start", start.detach().clone().float())
        self.growth = nn.Parameter(torch.zeros_like(self.start))

    @classmethod
    def fit(cls, weight: Tensor, axes: tuple[int, ...], width: int) -> Self:
        """The steps that move each channel's weights least, in squares. Channels of zeros get the mean of the others'."""
        low, high = bounds(width)
        others = [axis for axis in range(weight.dim()) if axis not in axes]
        weight = weight.detach().float()
        largest = weight.abs().amax(others, keepdim=True)
        best, error = largest / high, torch.full_like(largest, torch.inf)
        for sign in (1, -1) if low + high else (1,):
            for part in torch.linspace(1, LEAST, TRIED):
                step = sign * (part * largest / high).clamp_min(SMALLEST_SCALE)
                moved = ((weight / step).round().clamp(low, high) * step - weight).square().sum(others, keepdim=True)
                best, error = torch.where(moved < error, step, best), torch.minimum(moved, error)
        empty = largest == 0
        usual = best[~empty].abs().mean() if not bool(empty.all()) else torch.ones(())
        return cls(torch.where(empty, usual, best), axes, width)

    @property
    def scale(self) -> Tensor:
        return self.start * self.growth.exp()

    def integers(self, weight: Tensor) -> Tensor:
        """Float tensor of whole numbers."""
        return (weight / self.scale).round().clamp(*bounds(self.width))

    def forward(self, weight: Tensor) -> Tensor:
        low, high = bounds(self.width)
        share = (high * weight.numel() / self.start.numel()) ** -0.5
        return on_grid(weight, self.scale, low, high, share)

    def narrow(self, axis: int, index: Tensor) -> None:
        if axis in self.axes:
            self.start = self.start.index_select(axis, index)
            self.growth = nn.Parameter(self.growth.detach().index_select(axis, index))

    def encode(self, weight: Tensor) -> Encoding:
        low, high = bounds(self.width)
        integers = self.integers(weight)
        if self.width == 8:
            return ScaledIntegers(integers.to(torch.int8), self.scale.detach())
        return Codebook((integers - low).to(torch.uint8), torch.arange(low, high + 1).float(), self.scale.detach())


def bounds(width: int) -> tuple[int, int]:
    """The integers of a grid: of 8 bits as many below zero as above it."""
    high: int = 2 ** (width - 1) - 1
    return (-high if width == 8 else -high - 1), high
