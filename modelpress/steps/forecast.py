"""What can be said of a result's size before anything has been done. Each step says what it makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Forecast:
    """How a model's weights are expected to be stored, on average over all of them."""

    sides: int = 2
    """Of a layer, that are cut when units go: where the width between blocks stays, as norms want it, only one is."""
    share: float = 1.0
    """Of the parameters, that is left."""
    bits: float = 32.0
    """Of a stored weight."""
    zeros: float = 0.0
    """Share of the weights."""
    unforeseen: tuple[str, ...] = ()
    """Steps of which nothing can be said beforehand."""

    def left(self, share: float) -> Forecast:
        return replace(self, share=self.share * share)

    def stored(self, bits: float) -> Forecast:
        return replace(self, bits=min(self.bits, bits))

    def sparse(self, zeros: float) -> Forecast:
        return replace(self, zeros=max(self.zeros, zeros))

    def without(self, step: str) -> Forecast:
        return replace(self, unforeseen=(*self.unforeseen, step))

    @property
    def packed_bits(self) -> float:
        """Of a weight once zeros cost what they tell: at most, since the other values are counted in full."""
        if not 0 < self.zeros < 1:
            return self.bits
        kept = 1 - self.zeros
        places = -self.zeros * math.log2(self.zeros) - kept * math.log2(kept)
        return min(self.bits, places + kept * self.bits)
