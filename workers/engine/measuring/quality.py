"""Quality of original and result on the same labelled examples, and how sure the change between them is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelpress.jobs import Metric as Name
from modelpress.jobs import TaskKind
from modelpress.report import Quality
from workers.engine.errors import InvalidDataError
from workers.engine.measuring.metrics import CLASSIFICATION, REGRESSION, Metric

RESAMPLES = 1000
Z = 1.959964
"""97.5 % point of the normal distribution."""


class QualityMeter:
    """Keeps some numbers an example and metric, never the outputs."""

    def __init__(self, metrics: list[Metric], seed: int) -> None:
        self.metrics = metrics
        self._seed = seed
        self._kept: dict[Name, tuple[list[NDArray], list[NDArray]]] = {metric.name: ([], []) for metric in metrics}

    def add(self, original: NDArray, result: NDArray, labels: NDArray) -> None:
        """Judged outputs and labels of the same examples."""
        for metric in self.metrics:
            before, after = self._kept[metric.name]
            before.append(metric.statistics(original, labels))
            after.append(metric.statistics(result, labels))

    def result(self) -> Quality:
        first, *others = self.metrics
        before, after = self._statistics(first)
        low, high = change_interval(first, before, after, self._seed)
        was, now = first.value(before), first.value(after)
        return Quality(
            metric=first.name,
            n=len(before),
            original=was,
            result=now,
            change=now - was,
            low=low,
            high=high,
            others={other.name: self._values(other) for other in others},
        )

    def _statistics(self, metric: Metric) -> tuple[NDArray, NDArray]:
        before, after = self._kept[metric.name]
        return np.concatenate(before), np.concatenate(after)

    def _values(self, metric: Metric) -> tuple[float, float]:
        before, after = self._statistics(metric)
        return metric.value(before), metric.value(after)


def choose_metrics(kind: TaskKind, wanted: Name | None, classes: int | None) -> list[Metric]:
    """The metric that is judged, then the others that fit the task.

    Raises InvalidDataError where the wanted metric does not.
    """
    table = CLASSIFICATION if kind == "classification" else REGRESSION
    names = [name for name in table if name != "top5_accuracy" or (classes is not None and classes > 5)]
    if wanted is not None:
        if wanted not in names:
            raise InvalidDataError(
                f"the metric {wanted!r} does not fit this task ({kind}); choose one of {', '.join(names)}"
            )
        names.remove(wanted)
        names.insert(0, wanted)
    return [table[name] for name in names]


def change_interval(metric: Metric, before: NDArray, after: NDArray, seed: int) -> tuple[float, float]:
    """95 % interval of value(after) - value(before) over the same examples."""
    if metric.name in ("accuracy", "top5_accuracy") and np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        return paired_proportions(before[:, 0], after[:, 0])
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
