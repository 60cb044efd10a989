"""Train the graph to answer as the teacher does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, fx, nn

from modelpress.steps.distillation import Distillation
from modelpress.steps.training import TaughtStep
from workers.engine.attention_maps import attention_matching
from workers.engine.batching import Batch, answers, fixed_batch, labels_of, on_device, probe_of, training_data
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.features import FeatureMatching, Inner
from workers.engine.graph import Graph
from workers.engine.labels import Target
from workers.engine.losses import (
    Scores,
    as_rows,
    decided,
    logits,
    scores_of,
    softened_bce,
    softened_kl,
    spread_of,
)
from workers.engine.steps import applies
from workers.engine.teaching import Teacher
from workers.engine.training import Outcome, Schedule, train


@applies(Distillation)
def distillation(step: Distillation, graph: Graph, context: Context) -> Graph:
    outcome = distil(step, graph, context)
    context.notes.append(outcome.told())
    context.figures.update(outcome.measured())
    return graph


def distil(step: TaughtStep, graph: Graph, context: Context, schedule: Schedule | None = None) -> Outcome:
    """Train the graph in place, while a schedule changes it.

    Raises StepError where there is nothing to train on, or no output to train by.
    """
    data = training_data(context)
    if step.label_weight and not data.labelled:
        raise StepError("label_weight needs labels and the training data has none: leave it out, or name the labels")
    with ExitStack() as stack:
        stack.enter_context(on_device(graph, context.device))
        teacher = stack.enter_context(Teacher(context))
        size = fixed_batch(graph, context)
        probe = probe_of(data, context, size)
        inner = _inner(step, graph, teacher, probe, size) if step.features or step.attention else []
        context.notes.extend(found.told() for found in inner)
        return train(graph, Imitation(step, context, teacher, inner, probe, size), step, context, schedule)


def _inner(step: TaughtStep, graph: Graph, teacher: Teacher, probe: Batch, size: int | None) -> list[Inner]:
    """What else than answers is matched. Raises StepError where the teacher's inner results cannot be had."""
    what = "features" if step.features else "attention"
    if teacher.graph is None:
        raise StepError(f"{what}: the teacher's inner results are out of reach; leave {what} out")
    if teacher.size not in (None, size):
        raise StepError(
            f"{what}: the teacher takes {teacher.size} examples at a time and the model does not: "
            f"leave {what} out, or export both with a free batch size"
        )
    few = tuple(x[: size or 2] if x.ndim else x for x in probe.inputs)
    features: list[Inner] = [FeatureMatching(graph, teacher.graph, few)] if step.features else []
    return [*features, attention_matching(graph, teacher.graph, few)] if step.attention else features


class Imitation:
    """The objective: KL for the classes that are judged, squared error for every other output that has a gradient."""

    def __init__(
        self,
        step: TaughtStep,
        context: Context,
        teacher: Teacher,
        inner: Sequence[Inner],
        probe: Batch,
        size: int | None,
    ) -> None:
        self.step, self.teacher, self.inner = step, teacher, inner
        self.watched: tuple[fx.Node, ...] = tuple(node for found in inner for node in found.mine)
        self.judged = context.output
        self.classification = context.task in ("classification", "ctc")
        probed = answers(teacher.ask, probe.inputs, size)
        self.spread = {index: spread_of(found) for index, found in enumerate(probed) if found.is_floating_point()}
        if not self.spread:
            raise StepError("distillation needs an output of real numbers, and all of this model's are integers")
        if not all(math.isfinite(spread) for spread in self.spread.values()):
            raise StepError("the teacher answers NaN or infinity for some training data: look for such values there")
        self.scores = Scores.LOGITS
        self.axis = context.class_axis
        if self.judged not in self.spread:
            self.classification = False
        elif self.classification:
            self.scores = scores_of(as_rows(probed[self.judged], self.axis))
        teacher.watch([node for found in inner for node in found.theirs])
        self.target = None
        if step.label_weight:
            self.target = Target(probed[self.judged], labels_of(probe), context.task, self.axis, context.blank)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for found in self.inner for parameter in found.parameters()]

    def loss(self, outputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        taught = self.teacher.answers(batch)
        parts = [self._distance(i, outputs[i], taught[i].float()) for i in self.spread]
        loss = torch.stack(parts).sum()
        if self.inner:
            loss = loss + self._beneath(outputs, taught, len(batch.indices))
        if self.target:
            by_labels = self.target.loss(outputs[self.judged], labels_of(batch))
            loss = torch.lerp(loss, by_labels, self.step.label_weight)
        return loss

    def _beneath(self, outputs: tuple[Tensor, ...], taught: tuple[Tensor, ...], examples: int) -> Tensor:
        """The loss of the inner values, which come after the outputs."""
        count = len(self.watched)
        mine, theirs = list(outputs[-count:]), [value.float() for value in taught[-count:]]
        total = outputs[0].new_zeros(())
        for found in self.inner:
            own = len(found.mine)
            total = total + found.loss(mine[:own], theirs[:own], examples)
            del mine[:own], theirs[:own]
        return total

    def _distance(self, index: int, student: Tensor, teacher: Tensor) -> Tensor:
        if index != self.judged or not self.classification:
            return (student - teacher).square().mean() / self.spread[index]
        student, teacher = (logits(as_rows(found, self.axis), self.scores) for found in (student, teacher))
        if self.scores is Scores.SIGMOIDS:
            return softened_bce(student, teacher, self.step.temperature)
        return softened_kl(student, teacher, self.step.temperature)

    def figures(self, outputs: tuple[Tensor, ...], batch: Batch) -> dict[str, float]:
        by_labels = self.target.figures(outputs[self.judged], labels_of(batch)) if self.target else {}
        if not self.classification:
            return by_labels
        both = outputs[self.judged], self.teacher.answers(batch)[self.judged]
        mine, theirs = (decided(as_rows(found, self.axis), self.scores) for found in both)
        same = mine == theirs
        return {"agreement": float(same.float().mean())} | by_labels
