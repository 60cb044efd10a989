"""Weights of few bits, block by block, as a constraint: trainable straight through, zero stays zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.engine.constraints import Constraint
from workers.engine.encodings import Encoding, ProductIntegers
from workers.engine.errors import StepError
from workers.engine.packed_encodings import PackedIntegers
from workers.engine.quantization.blocks import Blocks, order_of
from workers.engine.quantization.grid import straight_through


class BlockGrid(Constraint):
    """weight → scale × (integer - zero), with a scale and a zero for each block.

    `scale` and `zero` (rows, blocks, 1), both as bfloat16 holds them; `zero` is the middle where it is None. Where all
    zeros are whole numbers, zero weights stay zero exactly. `product`: stored for a kernel that multiplies integers.
    """

    scale: Tensor
    zero: Tensor | None

    def __init__(
        self, blocks: Blocks, width: int, scale: Tensor, zero: Tensor | None, *, product: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.refit(blocks, width, scale, zero, product=product)

    def refit(self, blocks: Blocks, width: int, scale: Tensor, zero: Tensor | None, *, product: bool = False) -> None:
        """Another grid in the place of this one."""
        self.blocks = blocks
        self.width = width
        self.scale = scale.detach().float()
        self.zero = None if zero is None else zero.detach().float()
        self.product = product

    @property
    def whole_zeros(self) -> bool:
        return self.zero is None or bool((self.zero == self.zero.round()).all())

    def integers(self, weight: Tensor) -> Tensor:
        """Whole numbers from 0 on, as floats of shape (rows, blocks, length)."""
        return on_grid(self.blocks.split(weight), self.scale, self.zero, self.width)

    def forward(self, weight: Tensor) -> Tensor:
        values = (self.integers(weight) - middle_of(self.zero, self.width)) * self.scale
        return straight_through(self.blocks.join(values, weight.shape), weight)

    def encode(self, weight: Tensor) -> Encoding:
        integers = self.integers(weight).to(torch.uint8)
        scale, zero = self.scale.bfloat16(), None
        if self.zero is not None:
            zero = self.zero.to(torch.uint8) if self.whole_zeros else self.zero.bfloat16()
        if self.product:
            values = integers.flatten(1)[:, : weight.shape[1]]
            zeros = None if zero is None else zero.squeeze(2)
            return ProductIntegers(values, scale.squeeze(2), zeros, self.blocks.length, self.width, rounded=True)
        order = order_of(self.blocks.axes, weight.dim())
        middle = 2 ** (self.width - 1) if zero is None else zero
        return PackedIntegers(integers, scale, middle, self.width, tuple(weight.shape), order)

    def measure(self, weight: Tensor) -> None:
        """Set `bits` to what a value of this weight takes in a file."""
        self.bits = self.encode(weight).bits

    def narrow(self, axis: int, index: Tensor) -> None:
        """Rows go with their grids. Raises StepError where blocks would be torn apart."""
        axes = self.blocks.axes
        if axis not in axes:
            if self.scale.shape[1] > 1:
                raise StepError(
                    "weights of a few bits share scales along the axis that is cut: remove channels first, "
                    "or give each channel one scale (group_size: null)"
                )
            self.blocks = Blocks(axes, self.blocks.length)
            return
        if len(axes) > 1:
            raise StepError("recurrent weights of a few bits cannot lose units: remove them first")
        self.scale = self.scale.index_select(0, index)
        self.zero = None if self.zero is None else self.zero.index_select(0, index)


def middle_of(zero: Tensor | None, width: int) -> Tensor | float:
    return 2.0 ** (width - 1) if zero is None else zero


def on_grid(values: Tensor, scale: Tensor, zero: Tensor | None, width: int) -> Tensor:
    """The whole numbers nearest to values (…, length) on grids (…, 1)."""
    return (values / scale + middle_of(zero, width)).round_().clamp_(0, 2**width - 1)


def block_length(inside: int, group: int | None, width: int, *, product: bool) -> int:
    """Values a block, for rows of `inside` values and groups of about `group`; None: all of a row.

    Kernels want powers of two; else rows are cut into equal parts, so that little has to be filled up.
    """
    if group is None or inside <= group:
        length = inside
    elif product or inside % group == 0:
        return group
    else:
        length = math.ceil(inside / math.ceil(inside / group))
    multiple = {8: 1, 4: 2, 3: 8, 2: 4}[width]
    return math.ceil(length / multiple) * multiple
