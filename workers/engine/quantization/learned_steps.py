"""Grids of few integers whose step is trained together with the weights (LSQ, Esser et al., arXiv:1902.08153)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from workers.engine.encodings import Encoding
from workers.engine.packed_encodings import PackedIntegers
from workers.engine.quantization.blocks import as_rows, order_of
from workers.engine.quantization.grid import SMALLEST_SCALE
from workers.engine.quantization.learned_scale import LearnedScale, inner_axes

TRIED = 32
"""Steps that are tried for each channel, from the one that just holds its largest weight down to a fifth of that."""
LEAST = 0.2


class _OnGrid(torch.autograd.Function):
    """value → clamp(round(value / step), low, high) × step, with LSQ's gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        scaled = value / step
        integers = scaled.round().clamp(low, high)
        ctx.save_for_backward(scaled, integers, step)
        ctx.bounds = low, high
        return integers * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        scaled, integers, step = ctx.saved_tensors
        low, high = ctx.bounds
        inside = (scaled >= low) & (scaled <= high)
        moved = torch.where(inside, integers - scaled, integers)
        return gradient * inside, (gradient * moved).sum_to_size(step.shape), None, None


def on_grid(value: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """The value on the grid of whole steps from `low` to `high`; the step, which broadcasts, may be negative.

    Inside of the grid gradients pass straight through. A step's gradient is how far its values moved by rounding, or
    the bound at which they were cut off.
    """
    result: Tensor = _OnGrid.apply(value, step, low, high)
    return result


def calmed(value: Tensor, values: int, high: int) -> Tensor:
    """The same, with the share of its gradient that LSQ gives a step of so many values and steps on one side.

    Else the many values of a step would drown those of the weights where all gradients are clipped together.
    """
    share = float(max(1, values * high)) ** -0.5
    return value.detach() + (value - value.detach()) * share


class LearnedGrid(LearnedScale):
    """weight → step × integer, of few bits; the step is trained. Zero stays zero.

    Unless it is `even`, there is one integer more on the negative side, -2, -1, 0 and 1 of two bits: a channel whose
    large weights are positive has a negative step.
    """

    def __init__(self, start: Tensor, axes: tuple[int, ...], width: int, *, even: bool = False) -> None:
        super().__init__(start, axes)
        self.width = width
        self.even = even
        self.bits = float(width)

    @classmethod
    def fit(cls, weight: Tensor, axes: tuple[int, ...], width: int, *, even: bool = False) -> Self:
        """The steps that move each channel's weights least, in squares. One of zeros only gets the others' mean."""
        low, high = bounds(width, even=even)
        weight, inner = weight.detach().float(), inner_axes(weight, axes)
        largest = weight.abs().amax(inner, keepdim=True)
        best, error = largest / high, torch.full_like(largest, torch.inf)
        for sign in (1,) if even else (1, -1):
            for part in torch.linspace(1, LEAST, TRIED).tolist():
                step = sign * (part * largest / high).clamp_min(SMALLEST_SCALE)
                moved = ((weight / step).round().clamp(low, high) * step - weight).square().sum(inner, keepdim=True)
                best, error = torch.where(moved < error, step, best), torch.minimum(moved, error)
        empty = largest == 0
        usual = best.new_ones(()) if bool(empty.all()) else best[~empty].abs().mean()
        return cls(torch.where(empty, usual, best), axes, width, even=even)

    @property
    def bounds(self) -> tuple[int, int]:
        return bounds(self.width, even=self.even)

    def integers(self, weight: Tensor) -> Tensor:
        """Float tensor of whole numbers."""
        return (weight / self.scale).round().clamp(*self.bounds)

    def forward(self, weight: Tensor) -> Tensor:
        low, high = self.bounds
        return on_grid(weight, calmed(self.scale, weight.numel() // self.start.numel(), high), low, high)

    def encode(self, weight: Tensor) -> Encoding:
        low, _ = self.bounds
        integers, scale = self.integers(weight), self.scale.detach()
        values = as_rows(integers - low, self.axes).unsqueeze(1).to(torch.uint8)
        order = order_of(self.axes, weight.dim())
        return PackedIntegers(values, scale.reshape(-1, 1, 1), -low, self.width, tuple(weight.shape), order)


def bounds(width: int, *, even: bool) -> tuple[int, int]:
    """The lowest and the highest integer of a grid."""
    high: int = 2 ** (width - 1) - 1
    return -high if even else -high - 1, high
