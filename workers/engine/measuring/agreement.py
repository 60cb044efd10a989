"""How closely the result answers as the original does, output by output, example by example."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelpress.report import Agreement

LEAST_LOG = -700.0
"""What the logarithm of a probability of zero is taken for, so that one such class does not hide all others."""


class AgreementMeter:
    """Sums over batches for one output; `classes`: the axis of the class scores, where it has them."""

    def __init__(self, output: str, *, classes: int | None = None) -> None:
        self.output = output
        self.classes = classes
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
        lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        same = (difference == 0).all(1)
        cosine = np.divide((before * after).sum(1), lengths, out=np.zeros(len(before)), where=lengths > 0)
        self._cosine += float(np.where(same, 1.0, np.minimum(cosine, 1.0)).sum())

    def _add_scores(self, before: NDArray, after: NDArray) -> None:
        before, after = before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1])
        usable = ~np.isnan(after).any(1)
        self._positions += len(before)
        self._same += int(((before.argmax(1) == after.argmax(1)) & usable).sum())
        p, q = log_softmax(before), log_softmax(np.where(usable[:, None], after, 0))
        weights = np.exp(p)
        gaps = np.subtract(p, np.maximum(q, LEAST_LOG), out=np.zeros_like(p), where=weights > 0)
        self._divergence += float(np.nan_to_num(weights * gaps).sum())

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
            kl=max(0.0, self._divergence / self._positions) if self._positions and self.classes is not None else None,
            max_abs=self._largest,
        )


def _any(found: NDArray) -> NDArray:
    """For each example, whether it holds anywhere."""
    return np.any(found.reshape(len(found), -1), axis=1, keepdims=True)[:, 0]


def log_softmax(scores: NDArray) -> NDArray:
    """Over the last axis. Scores that are probabilities already are taken as they are."""
    if (scores >= 0).all() and np.allclose(scores.sum(-1), 1, atol=1e-3):
        return np.log(np.maximum(scores, 1e-12))
    with np.errstate(invalid="ignore"):
        shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
