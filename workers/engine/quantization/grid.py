"""Weights and biases on a grid of integers, as constraints: trainable straight through, zero stays zero."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from workers.engine.constraints import Constraint
from workers.engine.encodings import Encoding, Integers

SMALLEST_SCALE = torch.finfo(torch.float32).tiny * 2**23
"""Scales below this would make a dead channel's integers overflow."""


def _straight_through(value: Tensor, raw: Tensor) -> Tensor:
    return raw + (value - raw).detach()


class IntegerGrid(Constraint):
    """weight → scale × integer, symmetric, in int8 storage; 7 bits use only -63…63, so that AVX2 cannot saturate.

    `scale` has one value a channel of `axis`, or is 0-d where axis is None.
    """

    bits = 8.0
    scale: Tensor

    def __init__(self, scale: Tensor, axis: int | None, width: int = 8) -> None:
        super().__init__()
        self.axis = axis
        self.limit = 2 ** (width - 1) - 1
        self.register_buffer("scale", scale.detach().clone().float().clamp_min(SMALLEST_SCALE))

    @classmethod
    def fit(cls, weight: Tensor, axis: int | None, width: int = 8) -> Self:
        """The grid that just holds the largest weight of each channel."""
        weight = weight.detach().float()
        if axis is None:
            largest = weight.abs().amax()
        else:
            largest = weight.abs().transpose(0, axis).flatten(1).amax(1)
        return cls(largest / (2 ** (width - 1) - 1), axis, width)

    def steps(self, weight: Tensor) -> Tensor:
        """The scale, shaped to broadcast over the weight."""
        if self.axis is None:
            return self.scale
        shape = [1] * weight.dim()
        shape[self.axis] = -1
        return self.scale.view(shape)

    def integers(self, weight: Tensor) -> Tensor:
        """Float tensor of whole numbers in [-limit, limit]."""
        return (weight / self.steps(weight)).round().clamp(-self.limit, self.limit)

    def forward(self, weight: Tensor) -> Tensor:
        return _straight_through(self.integers(weight) * self.steps(weight), weight)

    def encode(self, weight: Tensor) -> Encoding:
        zero_point = torch.zeros_like(self.scale, dtype=torch.int8)  # stored once; ONNX Runtime fuses no Gemm without
        return Integers(self.integers(weight).to(torch.int8), self.scale, zero_point, self.axis)


class BiasGrid(Constraint):
    """A bias in int32 whose step is input scale × weight scale, so that the runtime adds it to the accumulators."""

    bits = 32.0
    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone().float())

    def integers(self, bias: Tensor) -> Tensor:
        limit = 2**31 - 1
        return (bias.double() / self.scale.double()).round().clamp(-limit, limit)

    def forward(self, bias: Tensor) -> Tensor:
        return _straight_through((self.integers(bias) * self.scale.double()).to(bias.dtype), bias)

    def encode(self, bias: Tensor) -> Encoding:
        return Integers(self.integers(bias).to(torch.int32), self.scale, None, 0, 32.0)


def grid_of(module: nn.Module, name: str) -> IntegerGrid | None:
    """The grid that a parameter already has, if any."""
    if not parametrize.is_parametrized(module, name):
        return None
    chain = module.parametrizations[name]  # type: ignore[union-attr, index]
    return next((constraint for constraint in chain if isinstance(constraint, IntegerGrid)), None)


def raw_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """The trainable tensor behind a parameter, before any constraint."""
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name].original  # type: ignore[union-attr, index, return-value]
    return getattr(module, name)  # type: ignore[no-any-return]
