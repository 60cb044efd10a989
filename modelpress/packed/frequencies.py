"""How often each symbol occurs: as it is counted, as it is stored, and as the entropy coder takes it."""

from __future__ import annotations

from dataclasses import dataclass

import constriction
import numpy as np
from numpy.typing import NDArray

from modelpress.packed.cursor import Cursor, varint
from modelpress.packed.errors import PackedError

TOTAL = 1 << 24
"""What the frequencies of one table add up to in the coder."""
STORED = 1 << 14
"""What the weights of one stored table add up to, about; more for large alphabets."""
QUICK_SCAN = 1.5
"""Symbols that a decoder looks through one by one, on average, before a search by halves is faster."""

Weights = NDArray[np.int64]


@dataclass(frozen=True)
class Alphabet:
    """The symbols `first … first + size - 1`. `size` is at least 2."""

    first: int
    size: int

    def write(self) -> bytes:
        return varint(self.first) + varint(self.size)

    @classmethod
    def read(cls, cursor: Cursor, most: int) -> Alphabet:
        """Raises PackedError where it reaches beyond symbol `most`."""
        first, size = cursor.varint(most), cursor.varint(most + 1)
        if size < 2 or first + size > most + 1:
            raise PackedError("damaged: an alphabet of symbols that cannot be")
        return cls(first, size)


def quantize(counts: NDArray[np.int64]) -> Weights:
    """Counts as small weights, none of which is 0 where its count is not."""
    total = max(int(counts.sum()), 1)
    room = max(STORED, 4 * len(counts))
    if total <= room:
        return counts
    return np.where(counts > 0, np.maximum(np.rint(counts * (room / total)), 1), 0).astype(np.int64)


def write_weights(weights: Weights) -> bytes:
    """Each weight as a varint; after a 0, how many more zeros follow it."""
    out = bytearray()
    zeros = 0
    for value in weights.tolist():
        if not value:
            zeros += 1
            continue
        if zeros:
            out += b"\0" + varint(zeros - 1)
            zeros = 0
        if value < 0x80:
            out.append(value)
        else:
            out += varint(value)
    return bytes(out + b"\0" + varint(zeros - 1) if zeros else out)


def read_weights(cursor: Cursor, size: int) -> Weights:
    values: list[int] = []
    while len(values) < size:
        values.append(cursor.varint(TOTAL))
        if values[-1] == 0:
            values.extend([0] * cursor.varint(size - len(values)))
    weights = np.array(values, dtype=np.int64)
    if not 0 < weights.sum() <= TOTAL:
        raise PackedError("damaged: weights of symbols that cannot be")
    return weights


def frequencies(weights: Weights) -> NDArray[np.int64]:
    """At least 1 each and `TOTAL` together, by whole numbers alone, so that every decoder finds the same."""
    borders = np.concatenate(([0], np.cumsum(weights)))
    free = TOTAL - len(weights)
    shares: NDArray[np.int64] = np.diff(borders * free // borders[-1])
    return shares + 1


def model(weights: Weights) -> constriction.stream.model.Categorical:
    """The coder's own table. It gives each symbol 1 and shares out the rest, which is then already in whole numbers."""
    found = frequencies(weights)
    quick = float(found @ np.arange(len(found))) < QUICK_SCAN * TOTAL
    return constriction.stream.model.Categorical((found - 1).astype(np.float64), perfect=False, lazy=quick)


def bits(counts: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """The entropy of all these symbols together."""
    used = counts[counts > 0]
    return float((used * np.log2(used.sum() / used)).sum())
