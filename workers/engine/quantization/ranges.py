"""How the range of an activation is found: from a histogram of what it was on the calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 2048
LEVELS = 256
MOST_VALUES = 1 << 18
"""Values of one tensor and batch that are counted; of more, an even sample is."""
PERCENTILE = 0.9999


@dataclass(frozen=True)
class Range:
    """Bounds of the values that are told apart; zero is always among them."""

    low: float
    high: float

    @classmethod
    def around_zero(cls, low: float, high: float) -> Range:
        return cls(min(low, 0.0), max(high, 0.0))

    @property
    def grid(self) -> tuple[float, int]:
        """Scale and zero point for unsigned 8 bits; zero falls on a grid point exactly."""
        scale = (self.high - self.low) / (LEVELS - 1)
        if scale <= torch.finfo(torch.float32).tiny:
            return 1.0, 0
        return scale, min(max(round(-self.low / scale), 0), LEVELS - 1)


class Histogram:
    """Streaming counts of one tensor in constant memory: `see` every batch, and `count` it then or when all are seen.

    What was counted before the bounds grew moves to the bins that its old ones lie in.
    """

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def see(self, values: Tensor) -> None:
        """Widen the bounds, which always hold zero. Raises ValueError on NaN or infinity."""
        low, high = (float(bound) for bound in values.detach().aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise ValueError("the values are not finite")
        if low < self.low or high > self.high:
            centers = self.centers
            self.low, self.high = min(self.low, low), max(self.high, high)
            self.counts = torch.zeros_like(self.counts).index_add_(0, self._index(centers), self.counts)

    @property
    def width(self) -> float:
        return (self.high - self.low) / BINS

    @property
    def centers(self) -> Tensor:
        return self.low + self.width * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def count(self, values: Tensor) -> None:
        flat = values.detach().flatten()
        step = max(1, -(-flat.numel() // MOST_VALUES))
        while step > 1 and math.gcd(step, flat.numel()) > 1:  # so that no channel is passed over
            step += 1
        index = self._index(flat[::step].float())
        self.counts += torch.bincount(index, minlength=BINS).double().cpu()

    def _index(self, values: Tensor) -> Tensor:
        if self.width <= torch.finfo(torch.float32).tiny:
            return torch.zeros_like(values, dtype=torch.int32)
        return ((values - self.low) * (1 / self.width)).clamp_(0, BINS - 1).to(torch.int32)


def min_max(histogram: Histogram) -> Range:
    return Range(histogram.low, histogram.high)


def percentile(histogram: Histogram, inside: float = PERCENTILE) -> Range:
    """Leave out the outermost values, of which this share is inside; half of them on each side where there are two."""
    total = histogram.counts.sum()
    if total == 0:
        return min_max(histogram)
    share = histogram.counts.cumsum(0) / total
    cut = (1 - inside) / (2 if histogram.low < 0 else 1)
    first = int((share <= cut).sum()) if histogram.low < 0 else 0
    last = min(int((share < 1 - cut).sum()), BINS - 1)
    low = histogram.low + first * histogram.width
    return Range.around_zero(low, histogram.low + (last + 1) * histogram.width)


def _shrunk(histogram: Histogram, steps: int) -> tuple[Tensor, Tensor]:
    """Candidate bounds, from the whole range to a small part of it: steps² where both signs occur."""
    one_sided = histogram.low == 0 or histogram.high == 0
    part = torch.linspace(0.05, 1, steps * steps // 4 if one_sided else steps, dtype=torch.float64)
    if one_sided:
        return part * histogram.low, part * histogram.high
    low, high = torch.meshgrid(part * histogram.low, part * histogram.high, indexing="ij")
    return low.flatten(), high.flatten()


def _best(histogram: Histogram, losses: Tensor, low: Tensor, high: Tensor) -> Range:
    if histogram.counts.sum() == 0:
        return min_max(histogram)
    best = int(losses.argmin())
    return Range.around_zero(float(low[best]), float(high[best]))


def mean_squared_error(histogram: Histogram) -> Range:
    """The bounds whose rounding and clipping together move the values least."""
    low, high = _shrunk(histogram, 20)
    step = ((high - low) / (LEVELS - 1)).clamp_min(1e-300)[:, None]
    zero = (-low[:, None] / step).round()
    values = histogram.centers
    kept = ((values / step).round() + zero).clamp(0, LEVELS - 1).sub(zero).mul(step)
    # Inside a bin the values spread too: without the floor of step² / 12 a grid finer than the bins would look perfect.
    inside = (values >= low[:, None]) & (values <= high[:, None])
    error = torch.where(inside, (step**2 / 12).expand_as(kept), (kept - values) ** 2)
    return _best(histogram, error @ histogram.counts, low, high)


def entropy(histogram: Histogram) -> Range:
    """The bounds that lose least information, by KL(original || quantized) (Migacz, 2017)."""
    low, high = _shrunk(histogram, 12)
    counts = histogram.counts.clone()
    # The bin of zero holds a spike after a ReLU; zero is exact on every grid, so it tells nothing apart.
    spike = min(int((0 - histogram.low) / max(histogram.width, 1e-300)), BINS - 1)
    counts[spike] = counts[max(spike - 1, 0) : spike + 2].min()
    values = histogram.centers
    losses = torch.empty(len(low), dtype=torch.float64)
    for index, (bottom, top) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        inside = (values >= bottom) & (values <= top)
        kept = counts[inside]
        if kept.count_nonzero() < 2:
            losses[index] = float("inf")
            continue
        reference = kept.clone()
        reference[0] += counts[values < bottom].sum()
        reference[-1] += counts[values > top].sum()
        level = ((values[inside] - bottom) * ((LEVELS - 1) / (top - bottom))).round().long().clamp(0, LEVELS - 1)
        filled = (kept > 0).double()
        mass = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, kept)
        places = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, filled)
        quantized = (mass / places.clamp_min(1))[level] * filled
        losses[index] = _divergence(reference, quantized)
    return _best(histogram, losses, low, high)


def _divergence(reference: Tensor, other: Tensor) -> float:
    """KL of two histograms, smoothed, so that a value that the grid lost costs much but not everything."""
    smooth = 1e-6
    reference = (reference / reference.sum() + smooth) / (1 + smooth * len(reference))
    other = (other / other.sum().clamp_min(1e-300) + smooth) / (1 + smooth * len(other))
    return float((reference * (reference / other).log()).sum())


RANGES: dict[str, Callable[[Histogram], Range]] = {
    "min_max": min_max,
    "percentile": percentile,
    "mse": mean_squared_error,
    "entropy": entropy,
}
