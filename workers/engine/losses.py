"""What training minimises: the distance to a teacher's answers, and the loss of labels."""

from __future__ import annotations

from enum import Enum, auto

import torch
import torch.nn.functional as F  # noqa: N812 (the name that all of PyTorch's users know)
from torch import Tensor

_TINY = 1e-7


class Scores(Enum):
    """What a classifier's outputs are; many exported models end in their softmax or sigmoid."""

    LOGITS = auto()
    PROBABILITIES = auto()
    """Sum to one over the classes."""
    SIGMOIDS = auto()
    """Each in [0, 1] on its own."""


def scores_of(rows: Tensor) -> Scores:
    """Tell logits from probabilities by their values; some dozens of answers leave little doubt."""
    if rows.min() < 0 or rows.max() > 1:
        return Scores.LOGITS
    sums = rows.sum(-1)
    one_each = rows.shape[-1] > 1 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    return Scores.PROBABILITIES if one_each else Scores.SIGMOIDS


def as_rows(answers: Tensor, class_axis: int | None) -> Tensor:
    """(..., C): the class scores last. Where no axis holds classes, every answer is a row of one score."""
    return answers.unsqueeze(-1) if class_axis is None else answers.movedim(class_axis, -1)


def spread_of(answers: Tensor) -> float:
    """The variance of a teacher's answers, the unit of squared errors; their square where they never differ."""
    variance, size = float(answers.var(correction=0)), float(answers.square().mean())
    return variance if variance > 1e-8 * size else size or 1.0


def logits(answers: Tensor, scores: Scores) -> Tensor:
    """Undo the softmax or sigmoid that the model ends in (up to a constant, which no loss here sees)."""
    if scores is Scores.LOGITS:
        return answers
    clamped = answers.clamp(_TINY, 1 - _TINY)
    return clamped.log() if scores is Scores.PROBABILITIES else torch.logit(clamped)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the softened class probabilities, mean over the rows, times temperature squared.

    Both are logits (..., C). A single class is a yes or no: then the two sigmoids are compared. Never below 0, where
    rounding alone would take it.
    """
    if student.shape[-1] == 1:
        student = torch.cat((student, torch.zeros_like(student)), -1)
        teacher = torch.cat((teacher, torch.zeros_like(teacher)), -1)
    student_log = F.log_softmax(student / temperature, -1)
    teacher_log = F.log_softmax(teacher / temperature, -1)
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)
    return divergence.mean().clamp_min(0) * temperature**2


def softened_bce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same for independent yes-or-no outputs: KL of each output's sigmoid, mean, times temperature squared."""
    target = torch.sigmoid(teacher / temperature)
    cross = F.binary_cross_entropy_with_logits(student / temperature, target)
    entropy = F.binary_cross_entropy_with_logits(teacher / temperature, target)
    return (cross - entropy).clamp_min(0) * temperature**2


def decided(rows: Tensor, scores: Scores) -> Tensor:
    """The class that was chosen; for independent yes-or-no outputs, each of them."""
    if scores is Scores.SIGMOIDS or rows.shape[-1] == 1:
        return rows > (0.0 if scores is Scores.LOGITS else 0.5)
    return rows.argmax(-1)
