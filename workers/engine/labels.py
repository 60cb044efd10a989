"""Labels in the forms that people have them, and their loss and accuracy against a model's answers."""

from __future__ import annotations

from enum import Enum, auto

import torch
import torch.nn.functional as F  # noqa: N812 (the name that all of PyTorch's users know)
from torch import Tensor

from workers.engine.errors import InvalidDataError
from workers.engine.losses import Scores, as_rows, class_axis, logits, scores_of

IGNORED = -100
"""A class index that counts for nothing, such as padding: PyTorch's own convention."""


class Form(Enum):
    CLASSES = auto()
    """A class index where the answers have a row of class scores."""
    DISTRIBUTION = auto()
    """One-hot, or probabilities that sum to one over the classes."""
    INDEPENDENT = auto()
    """A yes or no for each answer."""
    VALUES = auto()
    """Numbers to be met: a regression."""


class Target:
    """What the labels of a dataset are to the answers of a model, learnt from some of both.

    `answers` (N, ..., C) or (N, C, ...) or (N, ...). Raises InvalidDataError where labels do not fit the answers.
    """

    def __init__(self, answers: Tensor, labels: Tensor, classification: bool) -> None:
        answers = as_rows(answers)
        self.axis, self.form = class_axis(answers), Form.VALUES
        self.scores = Scores.LOGITS
        if not classification:
            return
        single = answers.shape[self.axis] == 1
        if single and labels.numel() == answers.numel():
            self.form = Form.INDEPENDENT
        elif labels.shape == answers.shape:
            sums = labels.sum(self.axis, dtype=torch.float32)
            one_each = torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
            self.form = Form.DISTRIBUTION if one_each else Form.INDEPENDENT
        else:
            self.form = Form.CLASSES
            self.axis = self._axis_by(labels, answers)
        self.scores = scores_of(answers, self.axis)

    def loss(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, or the mean squared error of a regression. Raises InvalidDataError for impossible labels."""
        answers = as_rows(answers)
        labels = self._fitted(labels, answers)
        if self.form is Form.VALUES:
            return F.mse_loss(answers, labels)
        student = logits(answers, self.scores)
        if self.form is Form.INDEPENDENT:
            return F.binary_cross_entropy_with_logits(student, labels)
        return F.cross_entropy(student.movedim(self.axis, 1), self._classes_second(labels), ignore_index=IGNORED)

    def figures(self, answers: Tensor, labels: Tensor) -> dict[str, float]:
        """Accuracy over all that counts, or the mean absolute error of a regression."""
        answers = as_rows(answers)
        labels = self._fitted(labels, answers)
        if self.form is Form.VALUES:
            return {"mae": float((answers - labels).abs().mean())}
        if self.form is Form.INDEPENDENT:
            right = (logits(answers, self.scores) > 0) == (labels > 0.5)
            return {"accuracy": float(right.float().mean())}
        chosen = answers.argmax(self.axis)
        if self.form is Form.DISTRIBUTION:
            return {"accuracy": float((chosen == labels.argmax(self.axis)).float().mean())}
        counted = labels != IGNORED
        right = (chosen == labels) & counted
        return {"accuracy": float(right.sum() / counted.sum().clamp_min(1))}

    def _classes_second(self, labels: Tensor) -> Tensor:
        return labels.movedim(self.axis, 1) if self.form is Form.DISTRIBUTION else labels

    def _axis_by(self, labels: Tensor, answers: Tensor) -> int:
        if labels.shape == answers.shape[:-1]:
            return answers.ndim - 1
        if labels.shape == answers.shape[:1] + answers.shape[2:]:
            return 1
        raise InvalidDataError(
            f"the labels of {len(answers)} examples have shape {tuple(labels.shape)}, but the model answers "
            f"{tuple(answers.shape)}: send a class index for each row of class scores, or a value for each score"
        )

    def _fitted(self, labels: Tensor, answers: Tensor) -> Tensor:
        if self.form is not Form.CLASSES:
            if labels.numel() != answers.numel() or len(labels) != len(answers):
                raise InvalidDataError(
                    f"the labels of {len(answers)} examples have shape {tuple(labels.shape)}, but the model answers "
                    f"{tuple(answers.shape)}: one value for each answer is needed"
                )
            return labels.reshape(answers.shape).to(answers.dtype)
        indices, classes = labels.long(), answers.shape[self.axis]
        wrong = labels[(indices != labels) | ((indices != IGNORED) & ((indices < 0) | (indices >= classes)))]
        if len(wrong):
            raise InvalidDataError(
                f"label {wrong[0].item():g} is none of the classes: the model has {classes} class scores, so labels "
                f"are whole numbers from 0 to {classes - 1} ({IGNORED} for what does not count)"
            )
        return indices
