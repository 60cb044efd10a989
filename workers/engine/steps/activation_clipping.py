"""Bound inner results and outputs: by given numbers, by what they reach on data, or by training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from modelpress.steps.activation_clipping import HIGH, ActivationClipping
from workers.engine.batching import on_device
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.quantization.calibration import Calibration, observe
from workers.engine.quantization.ranges import Range, percentile
from workers.engine.quantization.simulation import record, relative_error
from workers.engine.selection import selected
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil
from workers.engine.transforms.adding import results_of
from workers.engine.transforms.clipping import (
    BOUNDED,
    Bounded,
    bound,
    bounds_of,
    freeze_bounds,
    learn_bound,
    name_of,
    result_of,
)

JUDGED = 64
"""Examples on which it is measured how far the answers move."""
PROBED = 2

Bounds = tuple[float | None, float | None]


@applies(ActivationClipping)
def activation_clipping(step: ActivationClipping, graph: Graph, context: Context) -> Graph:
    names = _names(step, graph, context)
    with on_device(graph, context.device):
        names = _fitting(names, graph, context)
        if step.bounds == "given":
            before = None if context.calibrate is None else _answers(graph, context)
            bounds = dict.fromkeys(names, _given(step))
        else:
            before = _answers(graph, context)
            bounds = _calibrated(step, graph, list(names), context)
        bounds = {node: found for node, found in bounds.items() if _narrower(node, found, names[node], context)}
        if not bounds:
            told = "; ".join(f"{name}: {reason}" for name, reason in context.untouched.items())
            raise StepError(f"nothing can be bounded more tightly than it is: {told}")
        if step.bounds == "learned":
            found = _learned(step, graph, bounds, context)
        else:
            found = [bounds[node] for node in bounds]
            for node, (low, high) in bounds.items():
                bound(graph, node, low, high)
        if before is not None:
            effect = _tell_effect(graph, before, context)
            if step.bounds == "given" and effect == 0:
                context.warnings.append("on the data nothing lies beyond these bounds: they changed no answer")
    listed = "; ".join(f"{names[node]}: {_said(*limits)}" for node, limits in zip(bounds, found, strict=True))
    context.notes.append(f"{len(bounds)} results are bounded: {listed}")
    context.figures["bounded"] = len(bounds)
    return graph


def _names(step: ActivationClipping, graph: Graph, context: Context) -> dict[fx.Node, str]:
    """The values to bound, with the layer or output that each belongs to."""
    outputs = dict(zip(results_of(graph.module), (spec.name for spec in graph.outputs), strict=True))
    found: dict[fx.Node, str] = {}
    if step.where != "outputs":
        for layer in selected(step.layers, graph):
            node, reason = result_of(layer)
            if node in outputs and step.where == "layers":
                node, reason = None, "its result is an output of the model: where says whether those are bounded"
            if node is None:
                context.untouched[layer.name] = reason
            else:
                found.setdefault(node, layer.name)
    if step.where != "layers":
        for node, name in outputs.items():
            found.setdefault(node, name)
    return found


def _fitting(names: dict[fx.Node, str], graph: Graph, context: Context) -> dict[fx.Node, str]:
    """Those that are real numbers of 32 bits and have no bounds by their nature."""
    values = _probed(graph, context)
    left = {}
    for node, name in names.items():
        value = values.get(node)
        if name_of(node) in BOUNDED:
            context.untouched[name] = f"{name_of(node)} bounds its results already"
        elif not isinstance(value, Tensor) or value.dtype != torch.float32:
            context.untouched[name] = "its results are not float32"
        else:
            left[node] = name
    return left


def _probed(graph: Graph, context: Context) -> Mapping[fx.Node, object]:
    return record(graph, Calibration.of(graph, context).some(PROBED)[0])


def _given(step: ActivationClipping) -> Bounds:
    high = HIGH if step.low is None and step.high is None else step.high
    return step.low, high


def _calibrated(
    step: ActivationClipping, graph: Graph, nodes: list[fx.Node], context: Context
) -> dict[fx.Node, Bounds]:
    if isinstance(context.calibrate, SyntheticBatches):
        context.notes.append("bounds are those of made-up inputs: real ones may go beyond; send some hundreds of them")
    calibration = Calibration.of(graph, context)
    histograms = observe(graph, nodes, calibration, count=step.percentile < 100)
    ranges = {
        node: percentile(found, step.percentile / 100) if step.percentile < 100 else Range(found.low, found.high)
        for node, found in histograms.items()
    }
    return {node: (found.low, found.high) for node, found in ranges.items()}


def _narrower(node: fx.Node, bounds: Bounds, name: str, context: Context) -> bool:
    """Whether these bounds say more than what the value has already."""
    low, high = bounds
    if low is not None and high is not None and not low < high:
        context.untouched[name] = "it is 0 for all of the data"
        return False
    own = bounds_of(node)
    if own is not None:
        lower = low is not None and (own[0] is None or low > own[0])
        upper = high is not None and (own[1] is None or high < own[1])
        if not lower and not upper:
            context.untouched[name] = f"it is bounded already, {_said(*own)}"
            return False
    return True


def _learned(step: ActivationClipping, graph: Graph, bounds: dict[fx.Node, Bounds], context: Context) -> list[Bounds]:
    for node, (low, high) in bounds.items():
        if low is None or high is None:
            raise TypeError(node.name)
        learn_bound(graph, node, Bounded(low, high, step.bits, step.decay))
    outcome = distil(step, graph, context)
    context.notes.append(outcome.told())
    context.figures.update(outcome.measured())
    return list(freeze_bounds(graph))


def _answers(graph: Graph, context: Context) -> list[tuple[Tensor, ...]]:
    with torch.no_grad():
        return [graph(*inputs) for inputs in Calibration.of(graph, context).some(JUDGED)]


def _tell_effect(graph: Graph, before: list[tuple[Tensor, ...]], context: Context) -> float:
    pairs = zip(_answers(graph, context), before, strict=True)
    effect = max(relative_error(after, wanted) for after, wanted in pairs)
    context.notes.append(f"the outputs moved by {effect:.2%}")
    context.figures["effect"] = effect
    return effect


def _said(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"up to {high:.4g}" if low is None else f"from {low:.4g}"
    return f"{low:.4g} to {high:.4g}"
