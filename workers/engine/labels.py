"""Labels in the forms that people have them, and their loss and accuracy against a model's answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the name that all of PyTorch's users know)
from torch import Tensor

from modelpress.matching import IGNORED, Form, label_form
from workers.engine.errors import InvalidDataError
from workers.engine.losses import Scores, as_rows, logits, scores_of


class Target:
    """What the labels of a dataset are to the answers of a model, learnt from some of both.

    `class_axis` is that of `answers`, as in `Context`. Raises InvalidDataError where labels do not fit the answers.
    """

    def __init__(self, answers: Tensor, labels: Tensor, classification: bool, class_axis: int | None) -> None:
        self.axis, self.form, self.scores = class_axis, Form.VALUES, Scores.LOGITS
        if not classification:
            return
        rows = as_rows(answers, self.axis)
        self.scores = scores_of(rows)
        one_each = labels.shape == answers.shape and _sums_to_one(as_rows(labels, self.axis))
        shapes = tuple(answers.shape), tuple(labels.shape)
        self.form = label_form("classification", *shapes, self.axis, whole=False, one_each=one_each)
        if self.form is Form.CLASSES and labels.shape != rows.shape[:-1]:
            raise InvalidDataError(
                f"the labels of {len(answers)} examples have shape {tuple(labels.shape)}, but the model answers "
                f"{tuple(answers.shape)}: send a class index for each row of class scores, or a value for each score"
            )

    def loss(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, or the mean squared error of a regression. Raises InvalidDataError for impossible labels."""
        answers, labels = self._fitted(answers, labels)
        if self.form is Form.VALUES:
            return F.mse_loss(answers, labels)
        student = logits(answers, self.scores)
        if self.form is Form.INDEPENDENT:
            counted = labels != IGNORED
            losses = F.binary_cross_entropy_with_logits(student, labels, counted.to(student.dtype), reduction="sum")
            return losses / counted.sum().clamp_min(1)
        labels = labels.movedim(-1, 1) if self.form is Form.DISTRIBUTION else labels
        return F.cross_entropy(student.movedim(-1, 1), labels, ignore_index=IGNORED)

    def figures(self, answers: Tensor, labels: Tensor) -> dict[str, float]:
        """Accuracy over all that counts, or the mean absolute error of a regression."""
        answers, labels = self._fitted(answers, labels)
        if self.form is Form.VALUES:
            return {"mae": float((answers - labels).abs().mean())}
        if self.form is Form.INDEPENDENT:
            right = (logits(answers, self.scores) > 0) == (labels > 0.5)
            return {"accuracy": _share(right, labels != IGNORED)}
        chosen = answers.argmax(-1)
        if self.form is Form.DISTRIBUTION:
            return {"accuracy": float((chosen == labels.argmax(-1)).float().mean())}
        return {"accuracy": _share(chosen == labels, labels != IGNORED)}

    def _fitted(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of answers, and the labels as rows too, or as the number of a class for each row."""
        rows = as_rows(answers, self.axis)
        if self.form is not Form.CLASSES:
            if labels.numel() != answers.numel() or len(labels) != len(answers):
                raise InvalidDataError(
                    f"the labels of {len(answers)} examples have shape {tuple(labels.shape)}, but the model answers "
                    f"{tuple(answers.shape)}: one value for each answer is needed"
                )
            return rows, as_rows(labels.reshape(answers.shape).to(answers.dtype), self.axis)
        indices, classes = labels.long(), rows.shape[-1]
        wrong = labels[(indices != labels) | ((indices != IGNORED) & ((indices < 0) | (indices >= classes)))]
        if len(wrong):
            raise InvalidDataError(
                f"label {wrong[0].item():g} is none of the classes: the model has {classes} class scores, so labels "
                f"are whole numbers from 0 to {classes - 1} ({IGNORED} for what does not count)"
            )
        return rows, indices


def _sums_to_one(rows: Tensor) -> bool:
    sums = rows.sum(-1, dtype=torch.float32)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _share(right: Tensor, counted: Tensor) -> float:
    """Of those that count, how many are right."""
    return float((right & counted).sum() / counted.sum().clamp_min(1))
