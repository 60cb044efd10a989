"""Quality of original and result on the same labelled examples, and how sure the change between them is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelpress.jobs import Metric as Name
from modelpress.jobs import TaskKind
from modelpress.matching import Form, fitting_metrics
from modelpress.report import Quality
from workers.engine.errors import InvalidDataError
from workers.engine.measuring.metrics import METRICS, Metric, Share
from workers.engine.measuring.reading import Reading

NOTHING: NDArray = np.zeros(0)
RESAMPLES = 1000
Z = 1.959964
"""97.5 % point of the normal distribution."""


class QualityMeter:
    """Keeps some numbers an example of the metric that is judged, sums of the others, and never the outputs."""

    def __init__(self, metrics: list[Metric], reading: Reading, seed: int) -> None:
        self.first, *self.others = metrics
        self.reading = reading
        self._seed = seed
        self._kept: tuple[list[NDArray], list[NDArray]] = ([], [])
        self._sums: dict[Name, tuple[NDArray, NDArray]] = {other.name: (NOTHING, NOTHING) for other in self.others}

    def add(self, original: NDArray, result: NDArray, labels: NDArray) -> None:
        """Judged outputs and labels of the same examples."""
        before, after = self.reading(original, labels), self.reading(result, labels)
        for kept, judged in zip(self._kept, (before, after), strict=True):
            kept.append(self.first.statistics(judged))
        for other in self.others:
            sums = self._sums[other.name]
            self._sums[other.name] = _sum(sums[0], other.total(before)), _sum(sums[1], other.total(after))

    def result(self) -> Quality:
        before, after = (_rows(kept) for kept in self._kept)
        n = len(before)
        low, high = change_interval(self.first, before, after, self._seed)
        was, now = self.first.value(before), self.first.value(after)
        return Quality(
            metric=self.first.name,
            n=n,
            original=was,
            result=now,
            change=now - was,
            low=low,
            high=high,
            others={other.name: self._values(other, n) for other in self.others},
        )

    def _values(self, metric: Metric, n: int) -> tuple[float, float]:
        before, after = self._sums[metric.name]
        return metric.of(before / n), metric.of(after / n)


def choose_metrics(kind: TaskKind, wanted: Name | None, classes: int | None, form: Form | None = None) -> list[Metric]:
    """The metric that is judged, then the others that fit the task. `form`: what the labels are, where it is known.

    Raises InvalidDataError where the wanted metric does not.
    """
    names = list(fitting_metrics(kind, classes, form))
    if wanted is not None:
        if wanted not in names:
            raise InvalidDataError(
                f"the metric {wanted!r} does not fit this task ({kind}); choose one of {', '.join(names)}"
            )
        names.remove(wanted)
        names.insert(0, wanted)
    return [METRICS[name] for name in names]


def change_interval(metric: Metric, before: NDArray, after: NDArray, seed: int) -> tuple[float, float]:
    """95 % interval of value(after) - value(before) over the same examples."""
    if isinstance(metric, Share) and (before[:, 1] <= 1).all():
        counted = before[:, 1] == 1
        return paired_proportions(before[counted, 0], after[counted, 0])
    generator = np.random.default_rng(seed)
    n = len(before)
    changes = []
    for _ in range(RESAMPLES if n * before.shape[1] <= 1 << 20 else RESAMPLES // 5):
        weights = np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float64)
        changes.append(metric.value(after, weights) - metric.value(before, weights))
    low, high = np.percentile(changes, (2.5, 97.5))
    return float(low), float(high)


def paired_proportions(before: NDArray, after: NDArray) -> tuple[float, float]:
    """Interval of the change of a share between two tests of the same examples (Agresti & Min, 2005).

    Half a count is added to each cell of the two-by-two table, which keeps the coverage near 95 % for few examples
    and for models that agree on all of them.
    """
    n = len(before) + 2
    gained = float((after > before).sum()) + 0.5
    lost = float((before > after).sum()) + 0.5
    change = (gained - lost) / n
    error = Z * np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return max(-1.0, change - error), min(1.0, change + error)


def _rows(kept: list[NDArray]) -> NDArray:
    """One array of all examples: a batch in which the last classes do not occur counts none of them."""
    width = max(part.shape[1] for part in kept)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in kept])


def _sum(one: NDArray, other: NDArray) -> NDArray:
    width = max(len(one), len(other))
    return np.asarray(np.pad(one, (0, width - len(one))) + np.pad(other, (0, width - len(other))))
