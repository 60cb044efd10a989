"""Rows of a tensor that are alike share a table of frequencies: channels differ in how sparse and how wide they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from modelpress.packed.frequencies import bits

Value = TypeVar("Value", np.int32, np.uint8)

GROUPS = 4
ROUNDS = 3
FEWEST_SYMBOLS, FEWEST_EACH = 4096, 64
"""In all, and for each symbol of the alphabet: with less, the tables weigh more than they save."""
COARSE = 6
"""Bits of a symbol that rows are compared by."""
CROSSED = 4
"""Symbols of an alphabet that two ways to see rows are worth their tables for: a mask's, above all."""
MOST_CELLS = 1 << 17
"""Of the table rows × symbols that grouping counts in: more takes longer than a block may."""


@dataclass(frozen=True)
class Rows:
    """Element `j` of a block lies in row `(j // inner) % count`."""

    inner: int
    count: int

    def of(self, elements: int) -> NDArray[np.int32]:
        """The row of each element."""
        return self.spread(np.arange(self.count, dtype=np.int32), elements)

    def spread(self, values: NDArray[Value], elements: int) -> NDArray[Value]:
        """One value a row -> one an element."""
        once = np.repeat(values, min(self.inner, elements))
        return once[:elements] if len(once) >= elements else np.resize(once, elements)


@dataclass(frozen=True)
class Placed:
    """Rows, and in which of them each of a run of symbols lies."""

    rows: Rows
    of_symbol: NDArray[np.int32]

    def only(self, mask: NDArray[np.bool_]) -> Placed:
        return Placed(self.rows, self.of_symbol[mask])


@dataclass(frozen=True)
class Way:
    """The group of each row, in one way to see rows."""

    placed: Placed
    of_row: NDArray[np.uint8]

    @property
    def groups(self) -> int:
        return int(self.of_row.max()) + 1

    def of_symbol(self) -> NDArray[np.uint8]:
        return self.of_row[self.placed.of_symbol]


@dataclass(frozen=True)
class Grouping:
    """Groups of symbols by one way to see rows or by two at once, and about how many bytes they save."""

    ways: tuple[Way, ...]
    saved: float

    @property
    def groups(self) -> int:
        return math.prod(way.groups for way in self.ways)

    def of_symbol(self) -> NDArray[np.uint8]:
        """The first way's group counts most."""
        found = self.ways[0].of_symbol()
        for way in self.ways[1:]:
            found = found * np.uint8(way.groups) + way.of_symbol()
        return found


def group(symbols: NDArray[np.int32], placed: Placed, size: int) -> Grouping | None:
    """Rows in groups, or None where there are too few or too many. `symbols` are below `size`.

    Rows are sorted by their entropy, cut into groups, and moved to the group whose table codes them best, some times.
    Neighbouring symbols of a large alphabet are counted as one: they are as frequent as each other.
    """
    count = placed.rows.count
    shift = max(0, (size - 1).bit_length() - COARSE)
    coarse = (size - 1 >> shift) + 1
    if count < 2 * GROUPS or count * coarse > MOST_CELLS or len(symbols) < max(FEWEST_SYMBOLS, FEWEST_EACH * size):
        return None
    cells = placed.of_symbol * np.int32(coarse)
    cells += symbols >> np.int32(shift) if shift else symbols
    counts = np.bincount(cells, minlength=count * coarse).reshape(count, coarse).astype(np.float64)
    totals = np.maximum(counts.sum(axis=1), 1)
    spread = (counts * np.log2(np.maximum(counts, 1))).sum(axis=1) / totals - np.log2(totals)
    found = np.empty(count, dtype=np.int64)
    found[np.argsort(spread, kind="stable")] = np.arange(count) * GROUPS // count
    for _ in range(ROUNDS):
        tables = _tables(counts, found) + 1 / coarse
        found = (counts @ -np.log2(tables / tables.sum(axis=1, keepdims=True)).T).argmin(axis=1)
    _, found = np.unique(found, return_inverse=True)
    tables = _tables(counts, found)
    saved = (bits(counts.sum(axis=0)) - sum(map(bits, tables))) / 8
    way = Way(placed, found.astype(np.uint8))
    return Grouping((way,), saved - count / 4 - 2 * (np.count_nonzero(tables) << shift))


def cross(symbols: NDArray[np.int32], one: Grouping, other: Grouping, size: int) -> Grouping | None:
    """Both groupings at once: a table for each pair of groups. None for alphabets whose tables would weigh too much.

    What is frequent in one row is told apart from what is frequent in one column, so the rows of each way are moved to
    the groups that code them best given those of the other way, some times.
    """
    if size > CROSSED:
        return None
    ways = [one.ways[0], other.ways[0]]
    for _ in range(ROUNDS):
        ways = [_moved(symbols, ways[0], ways[1], size), ways[1]]
        ways = [ways[0], _moved(symbols, ways[1], ways[0], size)]
    crossed = Grouping((ways[0], ways[1]), 0)
    cells = crossed.of_symbol().astype(np.int32) * np.int32(size) + symbols
    tables = np.bincount(cells, minlength=crossed.groups * size).reshape(-1, size)
    saved = (bits(tables.sum(axis=0)) - sum(map(bits, tables))) / 8
    rows = sum(len(way.of_row) for way in ways)
    return Grouping(crossed.ways, saved - rows / 4 - 2 * np.count_nonzero(tables))


def _moved(symbols: NDArray[np.int32], way: Way, given: Way, size: int) -> Way:
    """Each row of a way in the group whose tables, one for each group of the other way, code it best."""
    rows, others = len(way.of_row), given.groups * size
    cells = way.placed.of_symbol * np.int32(others) + given.of_symbol() * np.int32(size) + symbols
    counts = np.bincount(cells, minlength=rows * others).reshape(rows, others).astype(np.float64)
    tables = (_tables(counts, way.of_row) + 1 / size).reshape(GROUPS, given.groups, size)
    cost = -np.log2(tables / tables.sum(axis=2, keepdims=True)).reshape(GROUPS, others)
    _, found = np.unique((counts @ cost.T).argmin(axis=1), return_inverse=True)
    return Way(way.placed, found.astype(np.uint8))


def _tables(counts: NDArray[np.float64], found: NDArray[np.int64] | NDArray[np.uint8]) -> NDArray[np.float64]:
    """The counts of each group: [rows, symbols] -> [groups, symbols]."""
    member = (np.arange(GROUPS)[:, None] == found).astype(np.float64)
    tables: NDArray[np.float64] = member @ counts
    return tables
