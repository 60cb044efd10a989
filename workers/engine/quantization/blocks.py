"""A weight as rows of blocks, each of which has a grid of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor


def order_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """These axes first, then the others."""
    return (*axes, *(axis for axis in range(rank) if axis not in axes))


def as_rows(weight: Tensor, axes: Sequence[int]) -> Tensor:
    """The weight as (rows, values): a row for each place along the axes, one row where there are none."""
    rows = math.prod(weight.shape[axis] for axis in axes)
    return weight.permute(order_of(axes, weight.dim())).reshape(rows, -1)


def from_rows(rows: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The inverse of `as_rows` for a weight of this shape."""
    order = order_of(axes, len(shape))
    back = sorted(range(len(order)), key=order.__getitem__)
    return rows.reshape([shape[axis] for axis in order]).permute(back)


@dataclass(frozen=True)
class Blocks:
    """Rows along `axes`, cut into blocks of `length` values; the last one of each row is filled up with zeros."""

    axes: tuple[int, ...]
    length: int

    def split(self, weight: Tensor) -> Tensor:
        """(rows, blocks, length)."""
        rows = as_rows(weight, self.axes)
        return F.pad(rows, (0, -rows.shape[1] % self.length)).unflatten(1, (-1, self.length))

    def join(self, blocks: Tensor, shape: Sequence[int]) -> Tensor:
        """The weight of this shape again."""
        values = math.prod(shape) // blocks.shape[0]
        return from_rows(blocks.flatten(1)[:, :values], self.axes, shape)
