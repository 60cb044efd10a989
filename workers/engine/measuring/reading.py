"""How the answers that are judged are read against the labels: decided once, and the same for both models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modelpress.matching import IGNORED, Form
from workers.engine.losses import Scores, as_rows, scores_of
from workers.engine.sequences import collapsed, packed

LARGEST = 1e30


@dataclass(frozen=True)
class Judged:
    """A batch of answers and labels, each (examples, positions): class numbers, or the values of a regression."""

    given: NDArray
    """-1, which is never right, where a model answers NaN."""
    wanted: NDArray
    """IGNORED for what does not count."""
    classes: int = 0
    """Class numbers are below it; 0 for values."""
    scores: NDArray | None = None
    """(examples, positions, classes), where there are scores to choose from."""

    @property
    def counted(self) -> NDArray:
        return self.wanted != IGNORED


@dataclass(frozen=True)
class Reading:
    form: Form
    axis: int | None = None
    """Of the answers, which holds the classes."""
    scores: Scores = Scores.LOGITS
    blank: int = 0
    """Of CTC: the class that stands for nothing."""

    def __call__(self, output: NDArray, labels: NDArray) -> Judged:
        n = len(output)
        if self.form in (Form.VALUES, Form.DIRECTIONS):
            return Judged(_flat(output), _flat(labels))
        if self.form is Form.GROUPS:
            return Judged(_flat(output), labels.astype(np.int64)[:, None])
        if self.form is Form.SEQUENCES:
            rows = output if n == len(labels) else output.swapaxes(0, 1)  # or time comes first
            return Judged(collapsed(predictions(rows), self.blank), packed(labels.astype(np.int64), self.blank))
        if self.form is Form.CHOICES:
            given, wanted = output.reshape(n, -1).astype(np.int64), labels.reshape(n, -1).astype(np.int64)
            return Judged(given, wanted, int(max(given.max(initial=0), wanted.max(initial=0))) + 1)
        if self.form is Form.INDEPENDENT:
            wanted = np.where(labels == IGNORED, IGNORED, labels > 0.5).reshape(n, -1)
            return Judged(decisions(output, self.scores).reshape(n, -1), wanted, 2)
        rows = np.moveaxis(output, -1 if self.axis is None else self.axis, -1)
        if self.form is Form.DISTRIBUTION:
            labels = np.moveaxis(labels, -1 if self.axis is None else self.axis, -1).argmax(-1)
        rows = rows.reshape(n, -1, rows.shape[-1])
        return Judged(predictions(rows), labels.reshape(n, -1).astype(np.int64), rows.shape[-1], rows)


def kind_of_scores(answers: NDArray, axis: int | None) -> Scores:
    """Logits or probabilities, by the original's answers: no result and no single batch may decide it anew."""
    return scores_of(as_rows(torch.from_numpy(np.asarray(answers, np.float64)), axis))


def decisions(answers: NDArray, scores: Scores) -> NDArray:
    """Yes (1) or no (0) for each answer; -1 where it is NaN. Logits decide at 0, probabilities at one half."""
    yes = answers > (0 if scores is Scores.LOGITS else 0.5)
    return np.where(np.isnan(answers), -1, yes)


def predictions(scores: NDArray) -> NDArray:
    """Class numbers; -1 where a score is NaN."""
    return np.where(np.isnan(scores).any(-1), -1, scores.argmax(-1))


def cosines(x: NDArray, y: NDArray) -> NDArray:
    """Of each row of one with that of the other; 1 for equal rows, zeros among them, and 0 for zeros beside others."""
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    found = np.divide((x * y).sum(1), lengths, out=np.zeros(len(x)), where=lengths > 0)
    return np.where((x == y).all(1), 1.0, np.minimum(found, 1.0))


def _flat(array: NDArray) -> NDArray:
    """(examples, values). Infinity becomes a number whose square is finite; that it was there is counted elsewhere."""
    return np.nan_to_num(array.reshape(len(array), -1).astype(np.float64), posinf=LARGEST, neginf=-LARGEST)
