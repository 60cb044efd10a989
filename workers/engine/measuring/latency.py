"""Latency of original and result, paired: both in one process, interleaved in random order, warm."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

from modelpress.report import Latency, Timing
from workers.engine.runtime import Session

WARM_UP = 3
MOST = 150
ENOUGH = 40
QUICKLY = 0.025
"""Seconds in which a tiny model may have as many as `MOST` pairs; others have `ENOUGH`."""
FEWEST = 7
"""From six pairs on, the extremes of the ratios are a 95 % interval of their median."""
SECONDS = 1.5
"""Of one measurement, unless the fewest pairs take longer."""
LONGEST = 30.0
"""A measurement that needs longer for the fewest pairs is left out."""


def measure_latency(
    original: Session,
    result: Session,
    inputs: Sequence[NDArray],
    *,
    own: Sequence[NDArray] | None = None,
    batch: int,
    threads: int,
    seed: int,
) -> Latency | None:
    """One batch size at the sessions' number of threads. None where it would take too long.

    `own`: what the result takes in the place of the inputs, where that is something else.
    """
    runs = [_bound(original, inputs), _bound(result, inputs if own is None else own)]
    pair = sum(_time(run) for run in runs)
    if pair * FEWEST > LONGEST:
        return None
    for _ in range(WARM_UP):
        pair = min(pair, sum(_time(run) for run in runs))
    pairs = min(MOST, max(ENOUGH, int(QUICKLY / pair)))
    pairs = max(FEWEST, min(pairs, int(SECONDS / pair)))
    times = np.array(list(_interleave(runs, pairs, random.Random(seed))))  # noqa: S311 (an order, no secret)
    ratios = np.sort(times[:, 0] / times[:, 1])
    low, high = median_interval(pairs)
    return Latency(
        batch=batch,
        threads=threads,
        original=_timing(times[:, 0]),
        result=_timing(times[:, 1]),
        ratio=float(np.median(ratios)),
        ratio_low=float(ratios[low]),
        ratio_high=float(ratios[high]),
        pairs=pairs,
    )


def median_interval(n: int, level: float = 0.95) -> tuple[int, int]:
    """Positions, from 0, of the order statistics of n values that enclose their median at this level or more.

    Exact: the number of values below the median is binomial. For fewer than six values the extremes are the best.
    """
    outside, position = 0.0, 0
    for fewer in range((n - 1) // 2):
        outside += 2 * comb(n, fewer) / 2.0**n
        if outside > 1 - level:
            break
        position = fewer
    return position, n - 1 - position


def _interleave(runs: Sequence[Callable[[], None]], pairs: int, order: random.Random) -> list[tuple[float, float]]:
    found = []
    for _ in range(pairs):
        if order.random() < 0.5:
            first = _time(runs[0])
            found.append((first, _time(runs[1])))
        else:
            second = _time(runs[1])
            found.append((_time(runs[0]), second))
    return found


def _bound(session: Session, inputs: Sequence[NDArray]) -> Callable[[], None]:
    """A run whose inputs and outputs are bound once, so that little of Python is in the time."""
    binding = session.session.io_binding()
    for name, array in zip(session.inputs, inputs, strict=True):
        binding.bind_cpu_input(name, array)
    for output in session.session.get_outputs():
        binding.bind_output(output.name, "cpu")

    def run() -> None:
        session.session.run_with_iobinding(binding)

    return run


def _time(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _timing(seconds: NDArray) -> Timing:
    median, p95 = np.percentile(seconds * 1000, (50, 95))
    return Timing(median_ms=float(median), p95_ms=float(p95))
