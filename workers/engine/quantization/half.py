"""16-bit floats as a constraint: what a weight is after it was stored in them."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.constraints import Constraint
from workers.engine.encodings import Encoding, HalfFloat


class Half(Constraint):
    """Rounds to a 16-bit float and back; gradients pass straight through."""

    bits = 16.0

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        rounded = weight.detach().to(self.dtype).to(weight.dtype)
        return rounded + (weight - weight.detach())

    def encode(self, weight: Tensor) -> Encoding:
        return HalfFloat(weight.to(self.dtype))
