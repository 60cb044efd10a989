"""Weights of two or three values a channel, as constraints: trained straight through, their scale with them."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from workers.engine.constraints import Constraint
from workers.engine.encodings import Codebook, Encoding
from workers.engine.quantization.grid import SMALLEST_SCALE

THRESHOLD = 0.7
"""Of the mean magnitude: weights below it become zero (Li & Liu, arXiv:1605.04711)."""
WINDOW = 3.0
"""Latent weights beyond so many scales are not pushed further outwards: they would never come back over zero."""


class FewValues(Constraint):
    """weight → scale × sign: one scale, which is trained, for each channel.

    `start` and what it is trained by are as in `LearnedGrid`.
    """

    values: tuple[float, ...]
    start: Tensor

    def __init__(self, start: Tensor, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        self.register_buffer("start", start.detach().clone().float().clamp_min(SMALLEST_SCALE))
        self.growth = nn.Parameter(torch.zeros_like(self.start))

    @classmethod
    def fit(cls, weight: Tensor, axes: tuple[int, ...]) -> Self:
        """The scales that move the weights least, in squares: the mean magnitude of those that are not zero."""
        new = cls(torch.ones([size if axis in axes else 1 for axis, size in enumerate(weight.shape)]), axes)
        weight = weight.detach().float()
        signs, others = new.signs(weight), [axis for axis in range(weight.dim()) if axis not in axes]
        count = signs.abs().sum(others, keepdim=True).clamp_min(1)
        new.start = ((weight * signs).sum(others, keepdim=True) / count).clamp_min(SMALLEST_SCALE)
        return new

    @property
    def scale(self) -> Tensor:
        return self.start * self.growth.exp()

    def signs(self, weight: Tensor) -> Tensor:
        """-1, 0 and 1, as floats."""
        raise TypeError(type(self).__name__)

    def forward(self, weight: Tensor) -> Tensor:
        scale, held = self.scale, weight.detach()
        fixed = scale.detach()
        inside = weight.clamp(-WINDOW * fixed, WINDOW * fixed)
        return self.signs(held) * scale + (inside - inside.detach())

    def narrow(self, axis: int, index: Tensor) -> None:
        if axis in self.axes:
            self.start = self.start.index_select(axis, index)
            self.growth = nn.Parameter(self.growth.detach().index_select(axis, index))

    def encode(self, weight: Tensor) -> Encoding:
        values = torch.tensor(self.values)
        return Codebook(torch.bucketize(self.signs(weight), values).to(torch.uint8), values, self.scale.detach())


class Binary(FewValues):
    """Two values, -a and a (Rastegari et al., arXiv:1603.05279)."""

    bits = 1.0
    values = (-1.0, 1.0)

    def signs(self, weight: Tensor) -> Tensor:
        return torch.where(weight < 0, -1.0, 1.0)


class Ternary(FewValues):
    """Three values, -a, 0 and a; zeros of a mask stay zero."""

    bits = 2.0
    values = (-1.0, 0.0, 1.0)

    def signs(self, weight: Tensor) -> Tensor:
        others = [axis for axis in range(weight.dim()) if axis not in self.axes]
        threshold = THRESHOLD * weight.abs().mean(others, keepdim=True)
        return torch.where(weight.abs() > threshold, weight.sign(), 0.0)
