"""How closely the result answers as the original does, output by output, example by example."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelpress.report import Agreement
from workers.engine.losses import Scores
from workers.engine.measuring.reading import cosines, decisions

VARIES = 1e-8
"""Variance / mean square from which answers count as varying: below, it is what floats round off."""
LEAST_LOG = -700.0
"""What the logarithm of a probability of zero is taken for, so that one such class does not hide all others."""


class AgreementMeter:
    """Sums over batches for one output.

    `classes`: the axis of the class scores, where it has them. `scores`: what the scores of a classifier are; without
    `classes`, each of them is a decision of its own.
    """

    def __init__(self, output: str, *, classes: int | None = None, scores: Scores | None = None) -> None:
        self.output = output
        self.classes = classes
        self.scores = scores
        self.n = 0
        self.broken = 0
        """Examples for which the result answers NaN, infinity or another shape, where the original does not."""
        self._positions = 0
        self._same = 0
        self._cosine = 0.0
        self._divergence = 0.0
        self._signal = 0.0
        self._noise = 0.0
        self._largest = 0.0
        self._means: NDArray = np.zeros(1)
        """Of the original's values, each over the examples."""
        self._squares = 0.0
        """Of the original's distances from those means, summed."""
        self._mixed = False
        """Whether answers of several sizes came, whose values have no means in common."""

    def add(self, original: NDArray, result: NDArray) -> None:
        """Outputs of the same examples, of shape (examples, …); those where the original answers NaN are left out."""
        before = np.atleast_1d(original).astype(np.float64)
        after = np.atleast_1d(result).astype(np.float64) if result.shape == original.shape else before * np.nan
        sound = ~_any(np.isnan(before))
        before, after = before[sound], after[sound]
        if not len(before):
            return
        lost = np.isnan(after) | ((np.isinf(before) | np.isinf(after)) & (before != after))
        self.broken += int(_any(lost).sum())
        if self.classes is not None and before.ndim > self.classes:
            self._add_scores(np.moveaxis(before, self.classes, -1), np.moveaxis(after, self.classes, -1))
        before, after = np.where(np.isfinite(before), before, 0), np.where(np.isfinite(after), after, 0)
        before, after = before.reshape(len(before), -1), after.reshape(len(after), -1)
        if self.classes is None and self.scores is not None:
            self._positions += before.size
            self._same += int((decisions(before, self.scores) == decisions(after, self.scores)).sum())
        if original.dtype.kind in "biu":
            self._positions += before.size
            self._same += int((before == after).sum())
        self._add_values(before, after)

    def _add_values(self, before: NDArray, after: NDArray) -> None:
        difference = before - after
        self.n += len(before)
        self._signal += float(np.square(before).sum())
        self._noise += float(np.square(difference).sum())
        self._largest = max(self._largest, float(np.abs(difference).max(initial=0)))
        self._cosine += float(cosines(before, after).sum())
        self._add_spread(before)

    def _add_spread(self, before: NDArray) -> None:
        """Means and distances from them, batch by batch (Chan et al., 1979)."""
        first, seen = self.n == len(before), self.n - len(before)
        if first:
            self._means = before.mean(0)
            self._squares = float(np.square(before - self._means).sum())
            return
        if before.shape[1] != len(self._means):
            self._mixed = True
            return
        means = before.mean(0)
        apart = means - self._means
        self._squares += float(np.square(before - means).sum() + np.square(apart).sum() * seen * len(before) / self.n)
        self._means = self._means + apart * len(before) / self.n

    def _add_scores(self, before: NDArray, after: NDArray) -> None:
        before, after = before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1])
        usable = ~np.isnan(after).any(1)
        self._positions += len(before)
        self._same += int(((before.argmax(1) == after.argmax(1)) & usable).sum())
        p, q = self._logs(before), self._logs(np.where(usable[:, None], after, 0))
        weights = np.exp(p)
        gaps = np.subtract(p, np.maximum(q, LEAST_LOG), out=np.zeros_like(p), where=weights > 0)
        self._divergence += float(np.nan_to_num(weights * gaps).sum())

    def _logs(self, scores: NDArray) -> NDArray:
        return np.log(np.maximum(scores, 1e-12)) if self.scores is Scores.PROBABILITIES else log_softmax(scores)

    def result(self) -> Agreement | None:
        """None where no example could be compared: the original itself answered NaN, or nothing."""
        if self.n == 0:
            return None
        snr = None if self._noise == 0 else 10 * np.log10(max(self._signal, 1e-300) / self._noise)
        return Agreement(
            output=self.output,
            n=self.n,
            top1=self._same / self._positions if self._positions else None,
            cosine=self._cosine / self.n,
            snr_db=None if snr is None else float(snr),
            r2=self._explained(),
            kl=max(0.0, self._divergence / self._positions) if self._positions and self.classes is not None else None,
            max_abs=self._largest,
        )

    def _explained(self) -> float | None:
        varies = self._squares > VARIES * self._signal
        return 1 - self._noise / self._squares if varies and not self._mixed else None


def _any(found: NDArray) -> NDArray:
    """For each example, whether it holds anywhere."""
    return np.any(found.reshape(len(found), -1), axis=1, keepdims=True)[:, 0]


def log_softmax(scores: NDArray) -> NDArray:
    """Over the last axis."""
    with np.errstate(invalid="ignore"):
        shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
