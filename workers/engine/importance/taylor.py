"""How much the loss would change without a unit, by its gradients (Molchanov et al., 2019, arXiv:1906.10771).

Without labels, the model's own answers take their place: drawn from what it finds likely, since against the answer it
gives every gradient is zero. The squares of such gradients add up to the curvature of the distance to its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (the name that all of PyTorch's users know)
from torch import Tensor
from torch.nn.utils import parametrize

from workers.engine.batching import Batch, answers, batch_of, batch_taken, labels_of, on_device, whole
from workers.engine.context import Batches, Context
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.importance import importance
from workers.engine.importance.units import Units, rows_of
from workers.engine.labels import Target
from workers.engine.losses import Scores, as_rows, logits, scores_of, spread_of
from workers.engine.structure.groups import Slot

EXAMPLES = 512
BATCH = 8
"""Gradients of few examples at a time are squared: those of many cancel out where the model has been trained."""

Loss = Callable[[tuple[Tensor, ...], Batch], Tensor]


@importance("taylor", comparable=True)
def taylor(groups: Sequence[Units], context: Context) -> list[Tensor]:
    """Mean over batches of the squared sum of weight times gradient, over all weights that take a unit."""
    if not groups:
        return []
    graph, data = groups[0].graph, context.calibrate
    if data is None:
        raise StepError("taylor needs inputs: send some hundreds as data.calibrate, or choose another importance")
    slots = [list(units.slots("takes")) or list(units.slots("makes")) for units in groups]
    scores = [torch.zeros(units.group.units, device=context.device) for units in groups]
    with on_device(graph, context.device):
        size = batch_taken(graph, data, context.device)
        order = torch.randperm(data.examples, generator=torch.Generator().manual_seed(context.seed))[:EXAMPLES]
        batches = whole(order, size).split(size) if size else order.split(BATCH)
        loss = _loss(graph, data, order, size, context)
        before = {parameter: parameter.requires_grad for parameter in graph.module.parameters()}
        try:
            for parameter in before:
                parameter.requires_grad_(False)
            for done, indices in enumerate(batches):
                context.progress(0.8 * done / len(batches), "gradients on calibration data")
                batch = batch_of(data, indices, context.device)
                with parametrize.cached():  # so that these are the very tensors that the graph computes with
                    used = [[units.watched(slot) for slot in found] for units, found in zip(groups, slots, strict=True)]
                    weights = _watched(used)
                    changes = _changes(loss(graph(*batch.inputs), batch), weights)
                for index, (of_group, found) in enumerate(zip(used, slots, strict=True)):
                    effect = _effect(len(scores[index]), of_group, found, changes)
                    scores[index] += effect.square() / len(batches)
        finally:
            for parameter, required in before.items():
                parameter.requires_grad_(required)
    return [score.cpu() for score in scores]


def _watched(used: list[list[Tensor]]) -> list[Tensor]:
    """Each once, with a gradient of its own: behind values that are picked from a list, no parameter has one."""
    weights = list({id(weight): weight for found in used for weight in found}.values())
    for weight in weights:
        weight.requires_grad_()
    return weights


def _changes(loss: Tensor, weights: list[Tensor]) -> dict[int, Tensor]:
    """By id: weight times gradient. Raises StepError where no gradient reaches any of them."""
    if not loss.requires_grad:
        raise StepError("taylor: no gradient reaches what could be removed; choose another importance, such as l2")
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    for weight in weights:
        weight.requires_grad_(False)
    return {
        id(weight): weight * gradient
        for weight, gradient in zip(weights, gradients, strict=True)
        if gradient is not None
    }


def _effect(units: int, used: list[Tensor], slots: list[Slot], changes: dict[int, Tensor]) -> Tensor:
    """(units,): the first-order change of the loss where each unit is gone."""
    total = torch.zeros(units)
    for weight, slot in zip(used, slots, strict=True):
        if id(weight) in changes:
            total = total.to(weight.device) + rows_of(changes[id(weight)], slot).sum(1)
    return total


def _loss(graph: Graph, data: Batches, order: Tensor, size: int | None, context: Context) -> Loss:
    """Of the labels where there are any, else of answers drawn from the model's own; says which in a note."""
    made_up = " made-up" if isinstance(data, SyntheticBatches) else ""
    probe = batch_of(data, whole(order, size) if size else order[:64], context.device)
    with torch.no_grad():
        probed = [answer.float() for answer in answers(graph, probe.inputs, size)]
    classification = context.task == "classification"
    chance = torch.Generator(context.device).manual_seed(context.seed)
    if data.labelled:
        target = Target(probed[context.output], labels_of(probe), context.task, context.class_axis, context.blank)
        context.notes.append(f"taylor: gradients of the labels' loss on {len(order)} examples")
        return lambda outputs, batch: target.loss(outputs[context.output], labels_of(batch))
    context.notes.append(
        f"taylor: gradients of the distance to the model's own answers on {len(order)}{made_up} inputs"
    )
    if classification:
        scores = scores_of(as_rows(probed[context.output], context.class_axis))
        return lambda outputs, _: _likely(as_rows(outputs[context.output], context.class_axis), scores, chance)
    spreads = {i: spread_of(answer) for i, answer in enumerate(probed) if answer.is_floating_point()}
    return lambda outputs, _: _near([outputs[i] for i in spreads], list(spreads.values()), chance)


def _likely(rows: Tensor, scores: Scores, chance: torch.Generator) -> Tensor:
    """Cross-entropy of classes drawn by the probabilities that the model gives them."""
    found = logits(rows, scores).flatten(0, -2)
    if scores is Scores.SIGMOIDS or found.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(found, torch.bernoulli(found.detach().sigmoid(), generator=chance))
    drawn = torch.multinomial(found.detach().softmax(-1), 1, generator=chance).squeeze(-1)
    return F.cross_entropy(found, drawn)


def _near(outputs: list[Tensor], spreads: list[float], chance: torch.Generator) -> Tensor:
    """Squared error to answers that noise moved, in units of each output's variance."""
    noise = [torch.randn(output.shape, generator=chance, device=output.device) for output in outputs]
    moved = [
        output.detach() + drawn * spread**0.5 for output, drawn, spread in zip(outputs, noise, spreads, strict=True)
    ]
    parts = zip(outputs, moved, spreads, strict=True)
    return torch.stack([(output - answer).square().mean() / spread for output, answer, spread in parts]).sum()
