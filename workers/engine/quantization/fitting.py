"""Scales and zero points of blocks of weights: the least squared error, or few large errors (half-quadratic).

Both are kept as bfloat16 holds them, which is how they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.quantization.block_grid import middle_of, on_grid
from workers.engine.quantization.grid import SMALLEST_SCALE

SHRUNK = {8: 0.85, 4: 0.6, 3: 0.45, 2: 0.3}
"""How far bounds are drawn in at most: with few levels it pays to clip the outermost weights."""
TRIED = 16
"""Bounds that are tried."""
AT_ONCE = 1 << 20
"""Weights that are fitted at a time, so that what is tried fits into the cache."""
POWER, BETA, GROWTH, ITERATIONS = 0.7, 10.0, 1.01, 20
"""Of the half-quadratic solver, as its authors have them: Badri & Shaji, 2023, mobiusml.github.io/hqq_blog."""


@dataclass(frozen=True)
class Kind:
    """What a grid may be. `exact`: zero has to be one of its values."""

    width: int
    symmetric: bool
    exact: bool


def as_stored(numbers: Tensor) -> Tensor:
    return numbers.bfloat16().float()


def nearest(values: Tensor, scale: Tensor, zero: Tensor | None, width: int) -> Tensor:
    """The values on their grids."""
    return (on_grid(values, scale, zero, width) - middle_of(zero, width)) * scale


def fit(
    blocks: Tensor, kind: Kind, importance: Tensor | None = None, *, half_quadratic: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros (rows, blocks, 1) of blocks (rows, blocks, length); no zeros where it is symmetric.

    `importance`: of each value's squared error, of a shape that broadcasts over the blocks.
    """
    rows = max(1, AT_ONCE // max(1, blocks[0].numel()))
    parts = []
    for start in range(0, len(blocks), rows):
        part = blocks[start : start + rows].float()
        weights = importance if importance is None or len(importance) == 1 else importance[start : start + rows]
        found = _least_squares(part, kind, weights)
        parts.append(_half_quadratic(part, kind, *found) if half_quadratic else found)
    scales = torch.cat([scale for scale, _ in parts])
    zeros = [zero for _, zero in parts if zero is not None]
    return scales, torch.cat(zeros) if zeros else None


def _least_squares(blocks: Tensor, kind: Kind, importance: Tensor | None) -> tuple[Tensor, Tensor | None]:
    best: Tensor | None = None
    scale, zero = torch.empty(0), None
    for factor in torch.linspace(1, SHRUNK[kind.width], TRIED).tolist():
        for new_scale, new_zero in _bounded(blocks, kind, factor):
            error = (nearest(blocks, new_scale, new_zero, kind.width) - blocks).square_()
            loss = (error if importance is None else error.mul_(importance)).sum(-1, keepdim=True)
            if best is None:
                best, scale, zero = loss, new_scale, new_zero
                continue
            better = loss < best
            best = torch.where(better, loss, best)
            scale = torch.where(better, new_scale, scale)
            zero = None if zero is None or new_zero is None else torch.where(better, new_zero, zero)
    return scale, zero


def _bounded(blocks: Tensor, kind: Kind, factor: float) -> list[tuple[Tensor, Tensor | None]]:
    """Grids whose bounds are this share of the blocks' own."""
    low, high = (bound * factor for bound in (blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)))
    half = 2 ** (kind.width - 1)
    if kind.symmetric:  # there is one level more on the side of the lowest: either side may have it
        lowest, highest = torch.maximum(-low / half, high / (half - 1)), torch.maximum(-low / (half - 1), high / half)
        return [(_positive(lowest), None), (-_positive(highest), None)]
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = _positive((high - low) / (2 * half - 1))
    zero = -low / scale
    grids: list[tuple[Tensor, Tensor | None]] = [(scale, _zero(zero, Kind(kind.width, kind.symmetric, exact=True)))]
    if not kind.exact:  # where many weights are close to zero it pays to hold zero itself, else to lose no level
        grids.append((scale, as_stored(zero)))
    return grids


def _positive(scale: Tensor) -> Tensor:
    return as_stored(scale.clamp_min(SMALLEST_SCALE))


def _zero(zero: Tensor, kind: Kind) -> Tensor:
    return zero.round().clamp(0, 2**kind.width - 1) if kind.exact else as_stored(zero)


def _half_quadratic(blocks: Tensor, kind: Kind, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Turns by turns the large errors are set aside (a shrinkage), and scale and zero are fitted to what is left."""
    best_scale, best_zero, beta = scale, zero, BETA
    best = (nearest(blocks, scale, zero, kind.width) - blocks).abs_().pow_(POWER).sum(-1, keepdim=True)
    for _ in range(ITERATIONS):
        integers = on_grid(blocks, scale, zero, kind.width)
        error = blocks - (integers - middle_of(zero, kind.width)) * scale
        size = error.abs()
        aside = error.sign() * (size - size.clamp_min(1e-8).pow(POWER - 1) / beta).clamp_min_(0)
        scale, zero = _fitted(integers, blocks - aside, kind, scale)
        loss = (nearest(blocks, scale, zero, kind.width) - blocks).abs_().pow_(POWER).sum(-1, keepdim=True)
        better = loss < best
        if not better.any():
            break
        best, best_scale = torch.where(better, loss, best), torch.where(better, scale, best_scale)
        if best_zero is not None and zero is not None:
            best_zero = torch.where(better, zero, best_zero)
        beta *= GROWTH
    return best_scale, best_zero


def _fitted(integers: Tensor, wanted: Tensor, kind: Kind, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale and zero with the least squared error for these integers; the scale stays where they are all one."""
    if kind.symmetric:
        centred = integers - middle_of(None, kind.width)
        power = centred.square().sum(-1, keepdim=True)
        found = (centred * wanted).sum(-1, keepdim=True) / power.clamp_min(1e-12)
        usable = (power > 0) & (found.abs() > SMALLEST_SCALE)
        return as_stored(torch.where(usable, found, scale)), None
    mean, level = integers.mean(-1, keepdim=True), wanted.mean(-1, keepdim=True)
    spread = (integers - mean).square().sum(-1, keepdim=True)
    found = ((integers - mean) * (wanted - level)).sum(-1, keepdim=True) / spread.clamp_min(1e-12)
    scale = as_stored(torch.where((spread > 0) & (found > SMALLEST_SCALE), found, scale))
    return scale, _zero(mean - level / scale, kind)
