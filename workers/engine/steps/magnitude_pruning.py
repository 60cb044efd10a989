"""Set the smallest weights to zero and keep them there."""

from __future__ import annotations

from modelpress.steps.magnitude_pruning import MagnitudePruning
from modelpress.steps.training import TaughtStep
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.sparsity import Gradually, Pruned, losers, prunable, relative, spared, sparsity, without_smallest
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil


@applies(MagnitudePruning)
def magnitude_pruning(step: MagnitudePruning, graph: Graph, context: Context) -> Graph:
    weights = prunable(step.layers, graph, context, lambda weight: _why_not(weight, step))
    before = sparsity(weights)
    if before >= step.share:
        context.warnings.append(
            f"{before:.2%} of these weights were zero already, so that no other became zero: ask for more than that"
        )
    if step.schedule == "cubic":
        _gradually(step, graph, context, weights)
    else:
        _tell_idle(step, context)
        prune(weights, step, step.share)
    zeros = sparsity(weights)
    total = sum(weight.value().numel() for weight in weights)
    context.figures["sparsity"] = zeros
    context.notes.append(f"{zeros:.2%} of the {total} weights in {len(weights)} tensors are zero now")
    return graph


def prune(weights: list[Pruned], step: MagnitudePruning, share: float) -> None:
    """Zero this share of the weights, rounded up to a whole weight; what is zero already counts."""
    scores = [weight.magnitude() for weight in weights]
    if step.n_m is not None:
        scores = [losers(score, weight.input_axis, *step.n_m) for score, weight in zip(scores, weights, strict=True)]
    elif step.scope == "adaptive":
        scores = relative(scores)
    elif step.scope == "global":
        scores = spared(scores, share)
    if step.scope == "layer":
        kept = [kept for score in scores for kept in without_smallest([score], share)]
    else:
        kept = without_smallest(scores, share)
    for weight, keep in zip(weights, kept, strict=True):
        weight.keep(keep)


def _gradually(step: MagnitudePruning, graph: Graph, context: Context, weights: list[Pruned]) -> None:
    """All masks are there before the training, which knows no weight that is replaced by another."""
    for weight in weights:
        weight.masks()
    schedule = Gradually(sparsity(weights), step.share, lambda share: prune(weights, step, share))
    outcome = distil(step, graph, context, schedule)
    context.notes.append(f"pruned while it was trained: {outcome.told()}")
    context.figures.update(outcome.measured())


def _tell_idle(step: MagnitudePruning, context: Context) -> None:
    idle = sorted(step.changed() & TaughtStep.model_fields.keys())
    if idle:
        context.warnings.append(f"{', '.join(idle)} had no effect: only the cubic schedule trains")


def _why_not(weight: Pruned, step: MagnitudePruning) -> str | None:
    inputs = weight.value().shape[weight.input_axis]
    if step.n_m is not None and inputs % step.n_m[1]:
        return f"{step.pattern} needs a multiple of {step.n_m[1]} inputs and it has {inputs}"
    return None
