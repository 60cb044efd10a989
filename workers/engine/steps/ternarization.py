"""Train weights of three values, -a, 0 and a."""

from __future__ import annotations

from modelpress.steps.ternarization import Ternarization
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.quantization.few_bits import constrain_all, none_left, weights_for
from workers.engine.quantization.few_values import Ternary
from workers.engine.selection import selected
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil


@applies(Ternarization)
def ternarization(step: Ternarization, graph: Graph, context: Context) -> Graph:
    weights = weights_for(
        selected(step.layers, graph), graph, context, lambda edge: 32.0 if edge and step.keep_edges else Ternary.bits
    )
    if not weights:
        raise none_left(context)
    made = constrain_all(weights, lambda weight: Ternary.fit(weight.value, weight.axes))
    outcome = distil(step, graph, context)
    values = [weight.value for weight in weights]
    zeros = sum(int((value == 0).sum()) for value in values) / sum(value.numel() for value in values)
    context.notes.append(
        f"{sum(value.numel() for value in values)} weights in {len(made)} tensors have three values a channel; "
        f"{zeros:.1%} of them are zero"
    )
    context.notes.append(outcome.told())
    context.figures.update({"sparsity": zeros} | outcome.measured())
    return graph
