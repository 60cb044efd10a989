"""The figures that say how good a model is, each from numbers an example, so that any of them can be resampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from modelpress.jobs import Metric as Name

LARGEST = 1e30


class Metric(ABC):
    """`statistics` keeps what is needed of each example; `value` makes the figure of examples with weights."""

    name: ClassVar[Name]
    rises: ClassVar[bool] = True
    """Whether more is better."""

    @abstractmethod
    def statistics(self, output: NDArray, labels: NDArray) -> NDArray:
        """(examples, k) for a batch."""

    def value(self, statistics: NDArray, weights: NDArray | None = None) -> float:
        return float(np.average(statistics[:, 0], weights=weights))


class Accuracy(Metric):
    name = "accuracy"

    def statistics(self, output: NDArray, labels: NDArray) -> NDArray:
        scores, wanted = class_scores(output, labels)
        return (predictions(scores) == wanted).reshape(len(output), -1).mean(1, keepdims=True)


class Top5Accuracy(Metric):
    name = "top5_accuracy"

    def statistics(self, output: NDArray, labels: NDArray) -> NDArray:
        scores, wanted = class_scores(output, labels)
        own = np.take_along_axis(scores, wanted[..., None].astype(np.int64), -1)
        ahead = (scores > own).sum(-1) + (np.isnan(own[..., 0]) * scores.shape[-1])
        return (ahead < 5).reshape(len(output), -1).mean(1, keepdims=True)


class F1(Metric):
    """Mean over the classes that occur in labels or predictions (macro F1)."""

    name = "f1"

    def statistics(self, output: NDArray, labels: NDArray) -> NDArray:
        scores, wanted = class_scores(output, labels)
        pairs = np.stack([predictions(scores), wanted], -1)
        return pairs.reshape(len(output), -1)

    def value(self, statistics: NDArray, weights: NDArray | None = None) -> float:
        predicted, wanted = statistics[:, 0::2].astype(np.int64), statistics[:, 1::2].astype(np.int64)
        spread = None if weights is None else np.repeat(weights, predicted.shape[1])
        size = int(max(predicted.max(), wanted.max())) + 1
        right = _count(predicted, size, spread, predicted == wanted)
        total = _count(predicted, size, spread) + _count(wanted, size, spread)
        return float((2 * right[total > 0] / total[total > 0]).mean())


class MeanSquaredError(Metric):
    name = "mse"
    rises = False

    def statistics(self, output: NDArray, labels: NDArray) -> NDArray:
        return np.square(_flat(output) - _flat(labels)).mean(1, keepdims=True)


class MeanAbsoluteError(Metric):
    name = "mae"
    rises = False

    def statistics(self, output: NDArray, labels: NDArray) -> NDArray:
        return np.abs(_flat(output) - _flat(labels)).mean(1, keepdims=True)


class Cosine(Metric):
    """Mean over the examples of the cosine between output and label."""

    name = "cosine"

    def statistics(self, output: NDArray, labels: NDArray) -> NDArray:
        x, y = _flat(output), _flat(labels)
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        return np.divide((x * y).sum(1), lengths, out=np.zeros(len(x)), where=lengths > 0)[:, None]


class Correlation(Metric):
    """Pearson's, over all values of all examples."""

    name = "correlation"

    def statistics(self, output: NDArray, labels: NDArray) -> NDArray:
        x, y = _flat(output), _flat(labels)
        return np.stack([part.mean(1) for part in (x, y, x * x, y * y, x * y)], 1)

    def value(self, statistics: NDArray, weights: NDArray | None = None) -> float:
        x, y, xx, yy, xy = np.average(statistics, axis=0, weights=weights)
        spread = np.sqrt(max(0.0, xx - x * x) * max(0.0, yy - y * y))
        return float((xy - x * y) / spread) if spread > 0 else 0.0


CLASSIFICATION: dict[Name, Metric] = {metric.name: metric for metric in (Accuracy(), Top5Accuracy(), F1())}
REGRESSION: dict[Name, Metric] = {
    metric.name: metric for metric in (MeanSquaredError(), MeanAbsoluteError(), Correlation(), Cosine())
}


def class_scores(output: NDArray, labels: NDArray) -> tuple[NDArray, NDArray]:
    """Scores with their classes on the last axis, and labels of the shape before it.

    The classes are on the last axis (scores a position) or on the second (scores a pixel). One score for two classes
    becomes two: logits decide at 0, probabilities at one half.
    """
    if labels.ndim == output.ndim and labels.shape != output.shape:
        labels = labels[..., 0]  # a column of labels
    if labels.shape == output.shape:
        output = output[..., None]
    if output.shape[:-1] != labels.shape:
        output = np.moveaxis(output, 1, -1)
    if output.shape[-1] == 1:
        certain = ((output >= 0) & (output <= 1)).all()
        output = np.concatenate([1 - output if certain else -output, output], -1)
    return output, labels


def predictions(scores: NDArray) -> NDArray:
    """Class numbers; -1, which is never right, where a score is NaN."""
    return np.where(np.isnan(scores).any(-1), -1, scores.argmax(-1))


def _count(values: NDArray, size: int, weights: NDArray | None, where: NDArray | None = None) -> NDArray:
    """Weighted occurrences of each class; values below 0 are no class."""
    flat = values.reshape(-1)
    kept = flat >= 0 if where is None else where.reshape(-1)
    return np.bincount(flat[kept], None if weights is None else weights[kept], size).astype(np.float64)


def _flat(array: NDArray) -> NDArray:
    """(examples, values). Infinity becomes a number whose square is finite; that it was there is counted elsewhere."""
    return np.nan_to_num(array.reshape(len(array), -1).astype(np.float64), posinf=LARGEST, neginf=-LARGEST)
