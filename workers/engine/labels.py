"""Labels in the forms that people have them, and their loss and accuracy against a model's answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the name that all of PyTorch's users know)
from torch import Tensor

from modelpress.jobs import TaskKind
from modelpress.matching import IGNORED, Form, label_form
from workers.engine.errors import InvalidDataError
from workers.engine.losses import Scores, as_rows, logits, scores_of
from workers.engine.sequences import collapsed, distances, lengths, packed

CONTRAST = 0.1
"""The temperature of the contrastive loss, as in its paper."""
NEVER = 1e4
PAIR = 2


class Target:
    """What the labels of a dataset are to the answers of a model, learnt from some of both.

    `class_axis` is that of `answers`, `blank` the class of CTC that stands for nothing, as in `Context`. Raises
    InvalidDataError where labels do not fit the answers.
    """

    def __init__(self, answers: Tensor, labels: Tensor, task: TaskKind, class_axis: int | None, blank: int = 0) -> None:
        self.axis, self.form, self.scores = class_axis, Form.VALUES, Scores.LOGITS
        if task == "embedding":
            self.form = Form.GROUPS if labels.ndim == 1 else Form.DIRECTIONS
        if task not in ("classification", "ctc"):
            return
        rows = as_rows(answers, self.axis)
        self.scores = scores_of(rows)
        if task == "ctc":
            self.form, self.ctc = Form.SEQUENCES, Ctc(answers, labels, blank)
            return
        one_each = labels.shape == answers.shape and _sums_to_one(as_rows(labels, self.axis))
        shapes = tuple(answers.shape), tuple(labels.shape)
        self.form = label_form("classification", *shapes, self.axis, whole=False, one_each=one_each)
        if self.form is Form.CLASSES and labels.shape != rows.shape[:-1]:
            raise InvalidDataError(
                f"the labels of {len(answers)} examples have shape {tuple(labels.shape)}, but the model answers "
                f"{tuple(answers.shape)}: send a class index for each row of class scores, or a value for each score"
            )

    def loss(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, or what is usual for the task. Raises InvalidDataError for impossible labels."""
        if self.form is Form.SEQUENCES:
            return self.ctc.loss(logits(answers, self.scores), labels)
        if self.form is Form.GROUPS:
            return contrastive(answers, labels)
        answers, labels = self._fitted(answers, labels)
        if self.form is Form.VALUES:
            return F.mse_loss(answers, labels)
        if self.form is Form.DIRECTIONS:
            return 1 - _cosine(answers, labels)
        student = logits(answers, self.scores)
        if self.form is Form.INDEPENDENT:
            counted = labels != IGNORED
            losses = F.binary_cross_entropy_with_logits(student, labels, counted.to(student.dtype), reduction="sum")
            return losses / counted.sum().clamp_min(1)
        labels = labels.movedim(-1, 1) if self.form is Form.DISTRIBUTION else labels
        return F.cross_entropy(student.movedim(-1, 1), labels, ignore_index=IGNORED)

    def figures(self, answers: Tensor, labels: Tensor) -> dict[str, float]:
        """Accuracy over all that counts, or what is usual for the task."""
        if self.form is Form.SEQUENCES:
            return {"token_error_rate": self.ctc.error_rate(answers, labels)}
        if self.form is Form.GROUPS:
            return {"nearest_neighbor": nearest_neighbor(answers, labels)}
        answers, labels = self._fitted(answers, labels)
        if self.form is Form.VALUES:
            return {"mae": float((answers - labels).abs().mean())}
        if self.form is Form.DIRECTIONS:
            return {"cosine": float(_cosine(answers, labels))}
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


class Ctc:
    """Sequences without their times (Graves et al., 2006); of answers (examples, time, classes) or time first."""

    def __init__(self, answers: Tensor, labels: Tensor, blank: int) -> None:
        """Of some examples, more or fewer than there are times."""
        examples, classes = len(labels), answers.shape[-1]
        self._time_first, self._blank = len(answers) != examples, blank
        if answers.shape[1 if self._time_first else 0] != examples:
            raise InvalidDataError(
                f"for {examples} examples the model answers {tuple(answers.shape)}, in which no axis counts them"
            )
        if blank >= classes or int(labels.max()) >= classes:
            raise InvalidDataError(
                f"the model has {classes} classes, so labels and task.blank are whole numbers from 0 to {classes - 1}"
            )

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Mean over the examples, each divided by the length of its labels; impossible ones count for nothing."""
        rows = scores if self._time_first else scores.transpose(0, 1)
        wanted = packed(labels.cpu().numpy(), self._blank)
        sizes, times = torch.from_numpy(lengths(wanted)), torch.full((rows.shape[1],), rows.shape[0])
        targets = torch.from_numpy(wanted).clamp_min(0)
        logs = F.log_softmax(rows, -1)
        return F.ctc_loss(logs, targets.to(rows.device), times, sizes, self._blank, "mean", zero_infinity=True)

    def error_rate(self, scores: Tensor, labels: Tensor) -> float:
        """Edits by which the best class at each time is off, for each class that is wanted."""
        rows = scores.transpose(0, 1) if self._time_first else scores
        given, wanted = collapsed(rows.argmax(-1).cpu().numpy(), self._blank), packed(labels.cpu().numpy(), self._blank)
        return float(distances(given, wanted).sum() / max(int(lengths(wanted).sum()), 1))


def contrastive(vectors: Tensor, labels: Tensor) -> Tensor:
    """Those of one class closer to each other than to the rest (Khosla et al., 2020, SupCon, arXiv:2004.11362)."""
    near, same = _neighbours(vectors, labels)
    logs = F.log_softmax(near / CONTRAST, 1).masked_fill(~same, 0)
    paired = same.sum(1)
    losses = -logs.sum(1) / paired.clamp_min(1)
    return losses.sum() / (paired > 0).sum().clamp_min(1)


def nearest_neighbor(vectors: Tensor, labels: Tensor) -> float:
    """The share of those whose nearest other has the same label."""
    near, same = _neighbours(vectors, labels)
    if len(vectors) < PAIR:
        return 0.0
    right = same.gather(1, near.argmax(1, keepdim=True))[:, 0]
    return float(right[labels != IGNORED].float().mean())


def _neighbours(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of each with each, none with itself; and which pairs have the same label."""
    unit = F.normalize(vectors.flatten(1), dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    same = (labels[:, None] == labels[None]) & ~itself & (labels != IGNORED)[:, None]
    return (unit @ unit.T).masked_fill(itself, -NEVER), same


def _cosine(answers: Tensor, labels: Tensor) -> Tensor:
    return F.cosine_similarity(answers.flatten(1), labels.flatten(1), dim=1).mean()


def _sums_to_one(rows: Tensor) -> bool:
    sums = rows.sum(-1, dtype=torch.float32)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _share(right: Tensor, counted: Tensor) -> float:
    """Of those that count, how many are right."""
    return float((right & counted).sum() / counted.sum().clamp_min(1))
