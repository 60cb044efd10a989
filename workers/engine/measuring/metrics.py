"""The figures that say how good a model is, each from numbers an example, so that any of them can be resampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from modelpress.jobs import Metric as Name
from workers.engine.measuring.reading import Judged, cosines
from workers.engine.sequences import distances, lengths


class Metric(ABC):
    """`statistics` keeps what is needed of each example; `of` makes the figure of their mean over the examples."""

    name: ClassVar[Name]
    rises: ClassVar[bool] = True
    """Whether more is better."""

    @abstractmethod
    def statistics(self, judged: Judged) -> NDArray:
        """(examples, k) for a batch."""

    def total(self, judged: Judged) -> NDArray:
        """(k,): the sum of the statistics over a batch."""
        return self.statistics(judged).sum(0)

    def of(self, mean: NDArray) -> float:
        return float(mean[0])

    def value(self, statistics: NDArray, weights: NDArray | None = None) -> float:
        return self.of(np.average(statistics, axis=0, weights=weights))


class Share(Metric):
    """Of the positions that count."""

    @abstractmethod
    def right(self, judged: Judged) -> NDArray: ...

    def statistics(self, judged: Judged) -> NDArray:
        counted = judged.counted
        return np.stack([(self.right(judged) & counted).sum(1), counted.sum(1)], 1).astype(np.float64)

    def of(self, mean: NDArray) -> float:
        return float(mean[0] / mean[1]) if mean[1] > 0 else 0.0


class Accuracy(Share):
    name = "accuracy"

    def right(self, judged: Judged) -> NDArray:
        return np.asarray(judged.given == judged.wanted)


class Top5Accuracy(Share):
    name = "top5_accuracy"

    def right(self, judged: Judged) -> NDArray:
        if judged.scores is None:
            raise ValueError("there are no scores of which five could be the best")
        wanted = np.where(judged.counted, judged.wanted, 0)
        own = np.take_along_axis(judged.scores, wanted[..., None], -1)
        ahead = (judged.scores > own).sum(-1)
        return np.asarray((judged.given >= 0) & (ahead < 5))


class F1(Metric):
    """Mean over the classes that occur in labels or predictions (macro F1)."""

    name = "f1"

    def statistics(self, judged: Judged) -> NDArray:
        """For each class: how often it was right, said and wanted."""
        examples = len(judged.given)
        rows = np.arange(examples)[:, None] * judged.classes
        return self._counts(judged, rows, examples).reshape(examples, -1)

    def total(self, judged: Judged) -> NDArray:
        return self._counts(judged, np.zeros((1, 1), np.int64), 1).reshape(-1)

    def of(self, mean: NDArray) -> float:
        right, said, wanted = mean.reshape(-1, 3).T
        occurs = said + wanted > 0
        return float((2 * right[occurs] / (said + wanted)[occurs]).mean()) if occurs.any() else 0.0

    def _counts(self, judged: Judged, rows: NDArray, count: int) -> NDArray:
        counted, said = judged.counted, judged.counted & (judged.given >= 0)
        right = said & (judged.given == judged.wanted)
        size = count * judged.classes
        columns = [
            np.bincount((values + rows)[where], minlength=size)
            for values, where in ((judged.given, right), (judged.given, said), (judged.wanted, counted))
        ]
        return np.stack(columns, -1).astype(np.float64)


class MeanSquaredError(Metric):
    name = "mse"
    rises = False

    def statistics(self, judged: Judged) -> NDArray:
        return np.square(judged.given - judged.wanted).mean(1, keepdims=True)


class MeanAbsoluteError(Metric):
    name = "mae"
    rises = False

    def statistics(self, judged: Judged) -> NDArray:
        return np.abs(judged.given - judged.wanted).mean(1, keepdims=True)


class Cosine(Metric):
    """Mean over the examples of the cosine between output and label."""

    name = "cosine"

    def statistics(self, judged: Judged) -> NDArray:
        return cosines(judged.given, judged.wanted)[:, None]


class Correlation(Metric):
    """Pearson's, over all values of all examples."""

    name = "correlation"

    def statistics(self, judged: Judged) -> NDArray:
        x, y = judged.given, judged.wanted
        return np.stack([part.mean(1) for part in (x, y, x * x, y * y, x * y)], 1)

    def of(self, mean: NDArray) -> float:
        x, y, xx, yy, xy = mean
        spread = np.sqrt(max(0.0, xx - x * x) * max(0.0, yy - y * y))
        return float((xy - x * y) / spread) if spread > 0 else 0.0


class TokenErrorRate(Metric):
    """Edits by which sequences are off, for each class that is wanted; of characters or words, as the classes are."""

    name = "token_error_rate"
    rises = False

    def statistics(self, judged: Judged) -> NDArray:
        edits = distances(judged.given, judged.wanted)
        return np.stack([edits, lengths(judged.wanted)], 1).astype(np.float64)

    def of(self, mean: NDArray) -> float:
        return float(mean[0] / mean[1]) if mean[1] > 0 else float(mean[0] > 0)


class NearestNeighbor(Share):
    """The share of vectors whose nearest other, by the cosine, among those of their batch has the same label."""

    name = "nearest_neighbor"

    def right(self, judged: Judged) -> NDArray:
        norms = np.linalg.norm(judged.given, axis=1, keepdims=True)
        unit = judged.given / np.maximum(norms, np.finfo(np.float64).tiny)
        near = unit @ unit.T
        np.fill_diagonal(near, -np.inf)
        return np.asarray(judged.wanted[near.argmax(1)] == judged.wanted)


METRICS: dict[Name, Metric] = {
    metric.name: metric
    for metric in (
        Accuracy(), Top5Accuracy(), F1(), MeanSquaredError(), MeanAbsoluteError(), Correlation(), Cosine(),
        TokenErrorRate(), NearestNeighbor(),
    )
}  # fmt: skip
