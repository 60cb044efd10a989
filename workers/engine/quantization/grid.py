"""Weights and biases on a grid of integers, as constraints: trainable straight through, zero stays zero."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from workers.engine.constraints import Constraint, Mask, constraints_of
from workers.engine.encodings import Encoding, Integers, ScaledIntegers

FEW_VALUES = 256
SMALLEST_SCALE = 2.0**-100
"""Scales of dead channels; far above where 32-bit floats lose their precision."""


def straight_through(value: Tensor, raw: Tensor) -> Tensor:
    """The value exactly, and the raw weight's gradient."""
    return value.detach() + (raw - raw.detach())


class IntegerGrid(Constraint):
    """weight → scale × integer, symmetric, in int8 storage; 7 bits use only -63…63, so that AVX2 cannot saturate.

    `scale` has the rank of the weight and broadcasts over it: it is as long as the weight along `axes`, else 1. Stored
    behind `DequantizeLinear`, or `folded`: behind a cast and a product, which runtimes fold to plain floats at load.
    """

    bits = 8.0
    scale: Tensor

    def __init__(self, scale: Tensor, axes: tuple[int, ...], width: int = 8, *, folded: bool = False) -> None:
        super().__init__()
        self.axes = axes
        self.width = width
        self.folded = folded
        self.register_buffer("scale", scale.detach().clone().float().clamp_min(SMALLEST_SCALE))

    @classmethod
    def fit(cls, weight: Tensor, axes: tuple[int, ...], width: int = 8, *, folded: bool = False) -> Self:
        """The grid that just holds the largest weight of each channel."""
        others = [axis for axis in range(weight.dim()) if axis not in axes]
        largest = weight.detach().float().abs().amax(others, keepdim=True) if others else weight.detach().float().abs()
        return cls(largest / (2 ** (width - 1) - 1), axes, width, folded=folded)

    @property
    def limit(self) -> int:
        return 2 ** (self.width - 1) - 1

    def integers(self, weight: Tensor) -> Tensor:
        """Float tensor of whole numbers in [-limit, limit]."""
        return (weight / self.scale).round().clamp(-self.limit, self.limit)

    def forward(self, weight: Tensor) -> Tensor:
        return straight_through(self.integers(weight) * self.scale, weight)

    def narrow(self, axis: int, index: Tensor) -> None:
        if axis in self.axes:
            self.scale = self.scale.index_select(axis, index)

    def encode(self, weight: Tensor) -> Encoding:
        integers = self.integers(weight).to(torch.int8)
        if self.folded or len(self.axes) > 1:
            return ScaledIntegers(integers, self.scale)
        scale = self.scale.flatten() if self.axes else self.scale.reshape(())
        zero_point = torch.zeros_like(scale, dtype=torch.int8)  # stored once; ONNX Runtime fuses no Gemm without
        return Integers(integers, scale, zero_point, self.axes[0] if self.axes else None)


class ShiftedGrid(IntegerGrid):
    """weight → scale × (integer - zero point), as other quantizers store weights: all 256 integers of int8 or uint8.

    `zero_point` has the shape of the scale and the type in which the integers are stored.
    """

    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, axes: tuple[int, ...]) -> None:
        super().__init__(scale, axes)
        self.register_buffer("zero_point", zero_point.detach().clone())

    def integers(self, weight: Tensor) -> Tensor:
        """Float tensor of whole numbers, zero where the weight is."""
        bounds, zero = torch.iinfo(self.zero_point.dtype), self.zero_point.float()
        return ((weight / self.scale).round() + zero).clamp(bounds.min, bounds.max) - zero

    def narrow(self, axis: int, index: Tensor) -> None:
        super().narrow(axis, index)
        if axis in self.axes:
            self.zero_point = self.zero_point.index_select(axis, index)

    def encode(self, weight: Tensor) -> Encoding:
        values = (self.integers(weight) + self.zero_point.float()).to(self.zero_point.dtype)
        shape = (-1,) if self.axes else ()
        axis = self.axes[0] if self.axes else None
        return Integers(values, self.scale.reshape(shape), self.zero_point.reshape(shape), axis)


class BiasGrid(Constraint):
    """A bias in int32 whose step is input scale × weight scale, so that the runtime adds it to the accumulators."""

    bits = 32.0
    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        """`scale` (channels,)."""
        super().__init__()
        self.register_buffer("scale", scale.detach().clone().float())

    def integers(self, bias: Tensor) -> Tensor:
        limit = 2**31 - 1
        return (bias.double() / self.scale.double()).round().clamp(-limit, limit)

    def forward(self, bias: Tensor) -> Tensor:
        return straight_through((self.integers(bias) * self.scale.double()).to(bias.dtype), bias)

    def narrow(self, axis: int, index: Tensor) -> None:
        self.scale = self.scale.index_select(axis, index)

    def encode(self, bias: Tensor) -> Encoding:
        return Integers(self.integers(bias).to(torch.int32), self.scale, None, 0, 32.0)


def has_few_values(module: nn.Module, name: str) -> bool:
    """Whether earlier steps left a parameter no more values than a grid has."""
    free = all(isinstance(constraint, (Mask, IntegerGrid)) for constraint in constraints_of(module, name))
    return not free and len(getattr(module, name).detach().unique()) <= FEW_VALUES


def fitted(module: nn.Module, name: str, axes: tuple[int, ...], width: int = 8, *, folded: bool = False) -> IntegerGrid:
    """The grid for a parameter, with scales along the axes.

    Where earlier steps left it only a few values, and scales along axes would make more of them, one scale for all.
    """
    weight = getattr(module, name)
    grid = IntegerGrid.fit(weight, axes, width, folded=folded)
    if has_few_values(module, name) and not torch.allclose(grid(weight), weight, rtol=1e-4):
        return IntegerGrid.fit(weight, (), width, folded=folded)
    return grid


def grid_of(module: nn.Module, name: str) -> IntegerGrid | None:
    """The grid that a parameter already has, if any."""
    return next((found for found in constraints_of(module, name) if isinstance(found, IntegerGrid)), None)
