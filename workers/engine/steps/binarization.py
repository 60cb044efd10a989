"""Train weights of one bit, and where it is asked for what the layers read and what the model answers, too."""

from __future__ import annotations

from modelpress.steps.binarization import Binarization
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.quantization.few_bits import constrain_all, none_left, weights_for
from workers.engine.quantization.few_values import Binary
from workers.engine.selection import selected
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil


@applies(Binarization)
def binarization(step: Binarization, graph: Graph, context: Context) -> Graph:
    weights = weights_for(
        selected(step.layers, graph), graph, context, lambda edge: 32.0 if edge and step.keep_edges else Binary.bits
    )
    if not weights:
        raise none_left(context)
    made = constrain_all(weights, lambda weight: Binary.fit(weight.value, weight.axes))
    context.notes.append(
        f"{sum(weight.value.numel() for weight in weights)} weights in {len(made)} tensors have two values a channel"
    )
    outcome = distil(step, graph, context)
    context.notes.append(outcome.told())
    context.figures.update(outcome.measured())
    return graph
