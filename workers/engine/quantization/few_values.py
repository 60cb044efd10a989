"""Weights of two or three values a channel, as constraints: trained straight through, their scale with them."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from workers.engine.encodings import Codebook, Encoding
from workers.engine.quantization.grid import SMALLEST_SCALE
from workers.engine.quantization.learned_scale import LearnedScale, inner_axes

THRESHOLD = 0.7
"""Of the mean magnitude: weights below it become zero (Li & Liu, arXiv:1605.04711)."""
WINDOW = 3.0
"""Latent weights beyond so many scales are pushed no further outwards: they would never come back over zero."""


class FewValues(LearnedScale):
    """weight → scale × sign. The latent weight decides the sign only; its gradient is that of what it became."""

    values: ClassVar[tuple[float, ...]]

    @classmethod
    def fit(cls, weight: Tensor, axes: tuple[int, ...]) -> Self:
        """The scales that move the weights least, in squares: the mean magnitude of those that are not zero."""
        weight = weight.detach().float()
        new = cls(torch.ones([size if axis in axes else 1 for axis, size in enumerate(weight.shape)]), axes)
        signs, inner = new.signs(weight), inner_axes(weight, axes)
        count = signs.abs().sum(inner, keepdim=True).clamp_min(1)
        return cls(((weight * signs).sum(inner, keepdim=True) / count).clamp_min(SMALLEST_SCALE), axes)

    @abstractmethod
    def signs(self, weight: Tensor) -> Tensor:
        """-1, 0 and 1, as floats."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = self.scale
        reach = WINDOW * scale.detach()
        latent = weight.clamp(-reach, reach)
        return self.signs(weight.detach()) * scale + (latent - latent.detach())

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
        threshold = THRESHOLD * weight.abs().mean(inner_axes(weight, self.axes), keepdim=True)
        return torch.where(weight.abs() > threshold, weight.sign(), 0.0)
