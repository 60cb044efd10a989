"""Train weights on grids of few bits, and the steps of the grids with them."""

from __future__ import annotations

from modelpress.steps.quantization_aware_training import QuantizationAwareTraining
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.quantization.few_bits import constrain_all, weights_for
from workers.engine.quantization.learned_steps import LearnedGrid
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil
from workers.engine.transforms.fold_batch_norm import fold_batch_norm

EDGE_BITS = 8


@applies(QuantizationAwareTraining)
def quantization_aware_training(step: QuantizationAwareTraining, graph: Graph, context: Context) -> Graph:
    graph.module.eval().to(context.device)
    folded = fold_batch_norm(graph)
    if folded:
        context.notes.append(f"{folded} batch norms are folded into the layers before them")

    def bits(edge: bool) -> int:
        return EDGE_BITS if edge and step.keep_edges else step.weight_bits

    weights = weights_for(step.layers, graph, context, bits)
    constrain_all(weights, lambda weight: LearnedGrid.fit(weight.value, weight.axes, bits(weight.edge)))
    few = [weight for weight in weights if bits(weight.edge) == step.weight_bits]
    context.notes.append(
        f"{sum(weight.value.numel() for weight in few)} weights of {len(few)} tensors are in {step.weight_bits} bits"
    )
    outcome = distil(step, graph, context)
    context.notes.append(outcome.told())
    context.figures.update(outcome.measured())
    return graph
