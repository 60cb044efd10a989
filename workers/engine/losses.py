"""What training minimises: the distance to a teacher's answers, and the loss of labels."""

from __future__ import annotations

from enum import Enum, auto

import torch
import torch.nn.functional as F  # noqa: N812 (the name that all of PyTorch's users know)
from torch import Tensor

IGNORED = -100
"""A label that counts for nothing, such as padding: PyTorch's own convention."""
_TINY = 1e-7


class Scores(Enum):
    """What a classifier's outputs are; many exported models end in their softmax or sigmoid."""

    LOGITS = auto()
    PROBABILITIES = auto()
    """Sum to one over the classes."""
    SIGMOIDS = auto()
    """Each in [0, 1] on its own."""


def scores_of(answers: Tensor, axis: int) -> Scores:
    """Tell logits from probabilities by their values; some dozens of answers leave little doubt."""
    if answers.min() < 0 or answers.max() > 1:
        return Scores.LOGITS
    sums = answers.sum(axis)
    one_each = answers.shape[axis] > 1 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    return Scores.PROBABILITIES if one_each else Scores.SIGMOIDS


def class_axis(answers: Tensor) -> int:
    """Where the classes stand, as far as the shape tells: second in an image's four dims, else last."""
    return 1 if answers.ndim >= 4 else answers.ndim - 1


def as_rows(answers: Tensor) -> Tensor:
    """(N,) as (N, 1): one answer an example is a row of one."""
    return answers.unsqueeze(-1) if answers.ndim == 1 else answers


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


def softened_kl(student: Tensor, teacher: Tensor, temperature: float, axis: int) -> Tensor:
    """KL(teacher || student) of the softened class probabilities, mean over all else, times temperature squared.

    Both are logits of the same shape. A single class is a yes or no: then the two sigmoids are compared.
    """
    if student.shape[axis] == 1:
        student = torch.cat((student, torch.zeros_like(student)), axis)
        teacher = torch.cat((teacher, torch.zeros_like(teacher)), axis)
    student_log = F.log_softmax(student / temperature, axis)
    teacher_log = F.log_softmax(teacher / temperature, axis)
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(axis)
    return divergence.mean() * temperature**2


def softened_bce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same for independent yes-or-no outputs: KL of each output's sigmoid, mean, times temperature squared."""
    target = torch.sigmoid(teacher / temperature)
    cross = F.binary_cross_entropy_with_logits(student / temperature, target)
    entropy = F.binary_cross_entropy_with_logits(teacher / temperature, target)
    return (cross - entropy) * temperature**2


def decided(answers: Tensor, axis: int, scores: Scores) -> Tensor:
    """The class that was chosen; for independent yes-or-no outputs, each of them."""
    if scores is Scores.SIGMOIDS or answers.shape[axis] == 1:
        return answers > (0.0 if scores is Scores.LOGITS else 0.5)
    return answers.argmax(axis)
