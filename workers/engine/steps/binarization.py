"""Train weights of one bit, and where it is asked for what the layers read and what the model answers, too."""

from __future__ import annotations

from modelpress.steps.binarization import Binarization
from modelpress.steps.output_compression import OutputCompression
from workers.engine.context import Context
from workers.engine.graph import Graph, Layer
from workers.engine.quantization.few_bits import constrain_all, none_left, weights_for
from workers.engine.quantization.few_values import Binary
from workers.engine.quantization.two_levels import binarize_inputs
from workers.engine.selection import selected
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil
from workers.engine.steps.output_compression import output_compression


@applies(Binarization)
def binarization(step: Binarization, graph: Graph, context: Context) -> Graph:
    graph.module.eval().to(context.device)

    def bits(edge: bool) -> float:
        return 32.0 if edge and step.keep_edges else Binary.bits

    weights = weights_for(selected(step.layers, graph), graph, context, bits)
    if not weights:
        raise none_left(context)
    layers = {weight.layer.name: weight.layer for weight in weights}
    if step.activations:
        _binarize_inputs(graph, layers, context)
    made = constrain_all(weights, lambda weight: Binary.fit(weight.value, weight.axes))
    context.notes.append(
        f"{sum(weight.value.numel() for weight in weights)} weights in {len(made)} tensors have two values a channel"
    )
    outcome = distil(step, graph, context)
    context.notes.append(outcome.told())
    context.figures.update(outcome.measured())
    if step.outputs:
        return output_compression(OutputCompression(decide="auto"), graph, context)
    return graph


def _binarize_inputs(graph: Graph, layers: dict[str, Layer], context: Context) -> None:
    done = binarize_inputs(graph, layers.values(), context)
    for name in layers.keys() - done:
        context.notes.append(f"{name}: its weights are binary and what it reads is not: it is no product of its input")
    if done:
        context.notes.append(
            f"what {len(done)} layers read has two values as well; ONNX Runtime has no binary kernels and computes "
            "with these values as floats"
        )
    else:
        context.warnings.append("activations had no effect: none of the layers is a product of what it reads")
