"""Sequences of class numbers: what a CTC model says, and how far that is from what was said.

Graves et al., 2006 (Connectionist temporal classification).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelpress.matching import IGNORED


def collapsed(chosen: NDArray, blank: int) -> NDArray:
    """(examples, time) of the best class at each time: repeats are one, blanks are none; the rest is IGNORED."""
    repeats = np.zeros(chosen.shape, bool)
    repeats[:, 1:] = chosen[:, 1:] == chosen[:, :-1]
    return packed(np.where(repeats, IGNORED, chosen), blank)


def packed(sequences: NDArray, blank: int) -> NDArray:
    """What counts, moved to the front; blanks and negative numbers are padding, which becomes IGNORED."""
    counts = (sequences >= 0) & (sequences != blank)
    order = np.argsort(~counts, axis=1, kind="stable")
    return np.where(np.take_along_axis(counts, order, 1), np.take_along_axis(sequences, order, 1), IGNORED)


def lengths(sequences: NDArray) -> NDArray:
    """Of packed ones."""
    return (sequences != IGNORED).sum(1)


def distances(given: NDArray, wanted: NDArray) -> NDArray:
    """(examples,): the fewest insertions, deletions and replacements between packed sequences (Levenshtein)."""
    examples, longest = given.shape
    own, other = lengths(given), lengths(wanted)
    row = np.tile(np.arange(wanted.shape[1] + 1), (examples, 1))
    found = np.take_along_axis(row, other[:, None], 1)[:, 0]
    for place in range(longest):
        before, row = row, np.empty_like(row)
        row[:, 0] = place + 1
        replaced = before[:, :-1] + (given[:, place, None] != wanted)
        for column in range(wanted.shape[1]):
            least = np.minimum(before[:, column + 1], row[:, column]) + 1
            row[:, column + 1] = np.minimum(replaced[:, column], least)
        found = np.where(own == place + 1, np.take_along_axis(row, other[:, None], 1)[:, 0], found)
    return found
