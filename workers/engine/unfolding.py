"""Weights that a file unfolds from packed integers or from a few values: the constraint that stores them so again.

What the nodes of the file do is only a hint. A constraint is taken where it gives back every value exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from workers.engine.clustering import Clusters
from workers.engine.constraints import Constraint
from workers.engine.quantization.block_grid import BlockGrid
from workers.engine.quantization.blocks import Blocks
from workers.engine.quantization.few_values import Binary, Ternary
from workers.engine.quantization.learned_steps import LearnedGrid, bounds

MOST_VALUES = 256
WIDTHS = (2, 3, 4, 8)


@dataclass(frozen=True)
class FewForm:
    """Picked from a short table, and multiplied by a `scale` of the weight's rank where there is one."""

    scale: Tensor | None = None

    def transposed(self) -> FewForm:
        return FewForm(None if self.scale is None else self.scale.t())

    def constraint(self, weight: Tensor) -> Constraint | None:
        if self.scale is None:
            return exact([Clusters.fit(weight, MOST_VALUES)], weight)
        axes = tuple(axis for axis, size in enumerate(self.scale.shape) if size > 1)
        return exact((kind(self.scale, axes) for kind in (Binary, Ternary)), weight)


@dataclass(frozen=True)
class BlockForm:
    """Integers less `zero` times `scale` (rows, blocks, 1), in blocks of `length`. The scale comes last."""

    zero: Tensor
    length: int
    scale: Tensor | None = None
    product: bool = False
    """Multiplied by a kernel that does not unfold them."""

    def transposed(self) -> BlockForm:
        return self

    def constraint(self, weight: Tensor) -> Constraint | None:
        if self.scale is None:
            return None
        found = exact(self._grids(weight, self.scale), weight)
        if isinstance(found, BlockGrid):
            found.measure(weight)
        return found

    def _grids(self, weight: Tensor, scale: Tensor) -> Iterator[Constraint]:
        """Every way in which the rows can lie in the weight, and every width that the integers can have."""
        short = torch.equal(scale, scale.bfloat16().float())  # else it is not what a grid of blocks stores
        places = range(weight.dim())
        for axes in ((), *permutations(places, 1), *permutations(places, 2)):
            blocks = Blocks(axes, self.length)
            if blocks.split(weight).shape[:2] != scale.shape[:2]:
                continue
            for width in WIDTHS:
                if short:
                    yield from self._block_grid(blocks, width, scale)
                if scale.shape[1] == 1:
                    yield from self._learned_grid(weight, axes, width, scale)

    def _block_grid(self, blocks: Blocks, width: int, scale: Tensor) -> Iterator[BlockGrid]:
        middle = bool((self.zero == 2 ** (width - 1)).all())
        if middle or self.zero.numel() == scale.numel():
            zero = None if middle else self.zero.float().reshape(scale.shape)
            yield BlockGrid(blocks, width, scale, zero, product=self.product)

    def _learned_grid(self, weight: Tensor, axes: tuple[int, ...], width: int, scale: Tensor) -> Iterator[LearnedGrid]:
        start = scale.reshape([size if axis in axes else 1 for axis, size in enumerate(weight.shape)])
        for even in (False, True):
            if bool((self.zero == -bounds(width, even=even)[0]).all()):
                yield LearnedGrid(start, axes, width, even=even)


@torch.no_grad()
def exact(candidates: Iterator[Constraint] | list[Constraint], weight: Tensor) -> Constraint | None:
    """The first that leaves the weight as it is."""
    return next((candidate for candidate in candidates if torch.equal(candidate(weight), weight)), None)
