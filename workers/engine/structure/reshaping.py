"""How the sizes before a reshape make those after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def block(before: Sequence[int], after: Sequence[int], start: int, place: int) -> tuple[int, int]:
    """Where the next dimensions end that hold as many elements before as after."""
    if start == len(before) or place == len(after):
        return len(before), len(after)
    stop, end = start + 1, place + 1
    left, right = before[start], after[place]
    while left != right:
        if left < right and stop < len(before):
            left, stop = left * before[stop], stop + 1
        elif end < len(after):
            right, end = right * after[end], end + 1
        else:
            return len(before), len(after)
    return stop, end


def common_factors(before: Sequence[int], after: Sequence[int]) -> list[int] | None:
    """The coarsest factors, first to last, of which both are made; None where there are none."""
    if math.prod(before) != math.prod(after) or 0 in before:
        return None
    ends = {math.prod(sizes[place:]) for sizes in (before, after) for place in range(len(sizes))}
    bounds = sorted(ends | {1})
    pairs = list(pairwise(bounds))
    if any(large % small for small, large in pairs):
        return None
    return [large // small for small, large in reversed(pairs)]


def shares(common: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Which of the factors, in order, make each size."""
    shared, following = [], iter(common)
    for size in sizes:
        own: list[int] = []
        while math.prod(own) != size:
            own.append(next(following))
        shared.append(own)
    return shared


def carried(before: Sequence[int], after: Sequence[int]) -> dict[int, int]:
    """Dimensions after a reshape that are as they were, and which ones they were."""
    found = {}
    start = place = 0
    while start < len(before) and place < len(after):
        stop, end = block(before, after, start, place)
        if stop - start == end - place == 1:
            found[place] = start
        start, place = stop, end
    return found
