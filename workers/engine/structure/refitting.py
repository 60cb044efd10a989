"""Layers fitted after units were removed, kept where that helped: judged by examples that were not used for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from workers.engine.batching import on_device
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.quantization.calibration import Calibration
from workers.engine.quantization.simulation import MOST_BYTES, bytes_per_example, relative_error
from workers.engine.structure.groups import find_groups
from workers.engine.structure.refit import refit

FITTED = 640
"""Inputs by which layers are fitted; a fifth of them only judge whether it helped."""
AT_A_TIME = 8
"""Values are dropped after their last reader: of all that a graph computes, less than this part is kept at a time."""

Batches = list[tuple[Tensor, ...]]


def refitted(whole: Graph, graph: Graph, keep: Mapping[str, Tensor], context: Context) -> Graph:
    """The graph with the layers fitted that lost inputs, where that helps."""
    groups = find_groups(whole)
    return fitted_where_it_helps(whole, graph, lambda other, used: refit(whole, other, groups, keep, used), context)


def fitted_where_it_helps(whole: Graph, graph: Graph, fit: Callable[[Graph, Batches], int], context: Context) -> Graph:
    """The graph with fitted layers, where that brings the outputs of examples that were not used nearer to before.

    `fit` changes a graph in place by the examples that it is given, and returns how many layers it fitted.
    """
    fitted = graph.copy()
    with on_device(whole, context.device), on_device(graph, context.device), on_device(fitted, context.device):
        calibration = Calibration.of(whole, context)
        room = max(2, AT_A_TIME * MOST_BYTES // bytes_per_example(whole, calibration.some(2)[0]))
        batches = calibration.some(min(room, FITTED))
        held, used = _divided(batches)
        layers = fit(fitted, used)
        errors = [_error(whole, other, held) for other in (graph, fitted)]
    if not layers or errors[1] >= errors[0]:
        context.notes.append(
            f"fitting {layers} layers did not help ({errors[0]:.1%} to {errors[1]:.1%}) and was left out"
        )
        return graph
    context.notes.append(
        f"{layers} layers fitted by least squares to what they gave before, on {sum(map(_examples, used))} inputs: "
        f"on others the outputs' error went from {errors[0]:.1%} to {errors[1]:.1%}"
    )
    context.figures |= {"error_before_refit": errors[0], "error": errors[1]}
    return fitted


def _divided(batches: Batches) -> tuple[Batches, Batches]:
    """A fifth to judge by, and the rest; the same where there is only one example or batch of a fixed size."""
    if len(batches) > 1:
        judged = max(1, len(batches) // 5)
        return batches[:judged], batches[judged:]
    judged = _examples(batches[0]) // 5
    if not judged:
        return batches, batches
    first, rest = (tuple(x[part] if x.ndim else x for x in batches[0]) for part in (slice(judged), slice(judged, None)))
    return [first], [rest]


def _examples(inputs: tuple[Tensor, ...]) -> int:
    return max((len(x) for x in inputs if x.ndim), default=1)


@torch.no_grad()
def _error(whole: Graph, other: Graph, batches: Batches) -> float:
    return max(relative_error(other(*inputs), whole(*inputs)) for inputs in batches)
