"""Train weights on grids of few bits, and the steps of the grids with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from modelpress.steps.quantization_aware_training import QuantizationAwareTraining
from modelpress.steps.static_quantization import StaticQuantization
from workers.engine.constraints import Constraint
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.quantization.edges import edge_layers
from workers.engine.quantization.few_bits import Weight, constrain_all, none_left, weights_for
from workers.engine.quantization.grid import IntegerGrid
from workers.engine.quantization.learned_ranges import begin_learning, end_learning
from workers.engine.quantization.learned_steps import LearnedGrid
from workers.engine.selection import selected
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil
from workers.engine.steps.static_quantization import static_quantization
from workers.engine.transforms.fold_batch_norm import fold_batch_norm

EDGE_BITS = 8
CALIBRATION = 0.1
"""Share of the progress that finding the first ranges takes."""


@applies(QuantizationAwareTraining)
def quantization_aware_training(step: QuantizationAwareTraining, graph: Graph, context: Context) -> Graph:
    graph.module.eval().to(context.device)
    training, integer = context, set[str]()
    if step.activation_bits:
        graph, integer = _in_integers(step, graph, replace(context, progress=_part(context.progress, 0, CALIBRATION)))
        training = replace(context, progress=_part(context.progress, CALIBRATION, 1))
    else:
        folded = fold_batch_norm(graph)
        if folded:
            context.notes.append(f"{folded} batch norms are folded into the layers before them")
    few = _in_few_bits(step, graph, context, integer)
    if not few | integer:
        raise none_left(context)
    if step.keep_edges and step.weight_bits < EDGE_BITS and few | integer <= edge_layers(graph):
        context.warnings.append(
            f"weight_bits had no effect: all these layers are the model's first and last, which keep {EDGE_BITS} bits: "
            "set keep_edges to false"
        )
    outcome = distil(step, graph, training)
    end_learning(graph)
    context.notes.append(f"trained on its grids: {outcome.told()}")
    context.figures.update(outcome.measured())
    return graph


def _bits(step: QuantizationAwareTraining, *, edge: bool) -> int:
    return EDGE_BITS if edge and step.keep_edges else step.weight_bits


def _in_integers(step: QuantizationAwareTraining, graph: Graph, context: Context) -> tuple[Graph, set[str]]:
    """Put all that can be on the grids of static quantization, and let those learn. Names the layers that have them."""
    start = StaticQuantization(keep_float=1.0, layers=step.layers)
    try:
        graph = static_quantization(start, graph, context)
    except StepError as error:
        raise StepError(f"{error}; without activation_bits only weights are quantized") from error
    edges = edge_layers(graph)
    integer = begin_learning(graph, graph.layers(step.layers), lambda layer: _bits(step, edge=layer.name in edges))
    context.figures["error_before_training"] = context.figures.pop("error")
    if step.weight_bits < EDGE_BITS:
        context.notes.append(
            f"weights take only {2**step.weight_bits - 1} of the values of a byte, which fit in {step.weight_bits} "
            "bits; the ONNX file holds the bytes, and a packed file takes no more than that"
        )
    return graph, integer


def _in_few_bits(step: QuantizationAwareTraining, graph: Graph, context: Context, integer: set[str]) -> set[str]:
    """Put weights that are computed with as floats on grids of few bits. Names the layers that have such weights."""
    layers = [layer for layer in selected(step.layers, graph) if layer.name not in integer]
    weights = weights_for(layers, graph, context, lambda edge: _bits(step, edge=edge))
    constrain_all(weights, lambda weight: _grid(weight, _bits(step, edge=weight.edge)))
    for weight in weights:
        context.untouched.pop(weight.layer.name, None)
    if weights:
        few = sum(weight.value.numel() for weight in weights if _bits(step, edge=weight.edge) == step.weight_bits)
        total = sum(weight.value.numel() for weight in weights)
        others = f", the other {total - few} in {EDGE_BITS}" if few < total else ""
        context.notes.append(
            f"{few} of {total} weights in {len(weights)} tensors are stored in {step.weight_bits} bits{others}, "
            "and computed with as floats"
        )
    return {weight.layer.name for weight in weights}


def _grid(weight: Weight, bits: int) -> Constraint:
    """Eight bits have nothing to learn: their steps are small whatever they are, and tables of embeddings are large."""
    if bits == EDGE_BITS:
        return IntegerGrid.fit(weight.value, weight.axes, bits, folded=True)
    return LearnedGrid.fit(weight.value, weight.axes, bits)


def _part(progress: Callable[[float, str], None], start: float, end: float) -> Callable[[float, str], None]:
    return lambda fraction, message: progress(start + (end - start) * fraction, message)
