"""Weights and activations in 8 bits: equalize, find ranges, leave float what suffers, quantize, correct the biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from modelpress.steps.static_quantization import StaticQuantization
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.ops.recurrent_cells import Recurrent
from workers.engine.quantization.alignment import align_depthwise
from workers.engine.quantization.bias_correction import correct_biases
from workers.engine.quantization.block_grid import BlockGrid
from workers.engine.quantization.calibration import Calibration, find_ranges
from workers.engine.quantization.equalization import equalize
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.insertion import Quantized, grid_biases, insert, store
from workers.engine.quantization.lowering import lower
from workers.engine.quantization.nodes import layer_name
from workers.engine.quantization.placement import place, trait_of
from workers.engine.quantization.rounding import learn_rounding
from workers.engine.quantization.sensitivity import Sensitivity, keep_worst_float
from workers.engine.quantization.simulation import MOST_BYTES, Simulation, bytes_per_example, record
from workers.engine.quantization.smoothing import STRENGTHS, smooth
from workers.engine.quantization.storage import too_few_channels
from workers.engine.quantization.weight_bits import stored_bits, weight_bits
from workers.engine.steps import applies
from workers.engine.transforms.fold_batch_norm import fold_batch_norm

FEW = 8
"""Examples that show how ops act."""
TRIALS, MOST_TRIALS = 1024, 64
"""Examples, over all layers, on which ranges are tried out and on whose outputs the whole is judged; and at most."""
CORRECTED = 256
"""Examples whose mean errors the biases take up, and on which roundings are learned."""


@applies(StaticQuantization)
def static_quantization(step: StaticQuantization, graph: Graph, context: Context) -> Graph:
    if any(isinstance(module, FakeQuantize) for module in graph.module.modules()):
        raise StepError("the model's activations are in 8 bits already: begin with the float model it was made from")
    graph.module.eval().to(context.device)
    width, stored_width = weight_bits(step.weight_bits, context.runtime), stored_bits(step.weight_bits)
    calibration = _calibration(graph, context)
    few = calibration.some(FEW)
    room = max(2, MOST_BYTES // bytes_per_example(graph, few[0]))
    before = graph.copy()
    folded = fold_batch_norm(graph)
    if folded:
        context.notes.append(f"{folded} batch norms are folded into the layers before them")
    lowered = lower(graph, record(graph, few[0]))
    _align(graph, context)
    layers, stored = _layers(step, graph, context)
    trials = min(room, max(8, min(MOST_TRIALS, TRIALS // len(layers))))
    _prepare(step, graph, context, calibration.some(trials), layers, width)

    context.progress(0.1, "finding ranges")
    placement = place(graph.module.graph, layers)
    simulation = Simulation(graph, calibration.some(trials), before)
    del before  # as large as the model, and the quantized copy is another
    ranges, taken = find_ranges(graph, placement, step.ranges, calibration, simulation)
    context.notes.append(_told_ranges(step, calibration, taken))
    context.progress(0.6, "measuring which layers suffer")
    found = keep_worst_float(graph, layers, ranges, simulation, step.keep_float, width, stored_width)
    kept = _keep_float(step, graph, context, found)

    context.progress(0.7, "quantizing")
    lowered.restore(graph, place(graph.module.graph, kept.layers).integer)
    quantized = insert(graph, place(graph.module.graph, kept.layers), ranges, kept.layers, width)
    store(quantized, kept.stored | stored, stored_width)
    some = calibration.some(min(room, CORRECTED))
    if step.adaptive_rounding:
        learn = _part(context.progress, 0.7, 0.95, "learning roundings")
        learned = learn_rounding(graph, quantized, some, context.seed, learn)
        context.notes.append(
            f"the roundings of {learned} layers are learned on {sum(len(inputs[0]) for inputs in some)} examples"
        )
    if step.bias_correction:
        _correct_biases(graph, quantized, context, simulation, some)
    grid_biases(quantized)
    _tell_result(context, quantized, simulation, width)
    return quantized.graph


def _align(graph: Graph, context: Context) -> None:
    widened = align_depthwise(graph) if context.runtime in ("cpu-avx2", "cpu-vnni") else []
    if widened:
        context.notes.append(
            f"channels of zeros bring {len(widened)} depthwise convolutions to a multiple of 16, "
            f"at which integers are fastest: {', '.join(widened)}"
        )


def _calibration(graph: Graph, context: Context) -> Calibration:
    if isinstance(context.calibrate, SyntheticBatches):
        context.notes.append("calibrated on made-up inputs: ranges of real ones may differ, send some hundreds of them")
    return Calibration.of(graph, context)


def _layers(step: StaticQuantization, graph: Graph, context: Context) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
    """The calls of the selected layers that gain by integers, and the layers that only are stored in 8 bits.

    The others are named in `untouched`.
    """
    chosen: set[str] = set()
    stored: set[fx.Node] = set()
    for layer in graph.layers():
        reason = _why_float(step, layer)
        trait = trait_of(layer.node)
        if reason:
            context.untouched[layer.name] = reason
        elif trait and not trait.inputs:
            stored.add(layer.node)
        elif too_few_channels(layer.module):
            stored.add(layer.node)
            context.untouched[layer.name] = "computes in float from 8-bit weights: too few channels to gain by integers"
        else:
            chosen.add(str(layer.node.target))
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in context.untouched.items()) or "it has no layers"
        raise StepError(f"no layer of the model can be quantized ({reasons})")
    if stored:
        context.notes.append(f"{len(stored)} layers are stored in 8 bits and compute in float")
    calls = (node for node in graph.module.graph.nodes if node.op == "call_module" and str(node.target) in chosen)
    return frozenset(calls), frozenset(stored)


def _why_float(step: StaticQuantization, layer: Layer) -> str | None:
    if not step.layers.selects(layer.name):
        return "not selected"
    trait = trait_of(layer.node)
    if trait is None or not trait.weights:
        advice = "; dynamic_quantization stores its weights in 8 bits" if isinstance(layer.module, Recurrent) else ""
        return f"{layer.op.name} has no integer form in static quantization{advice}"
    if any(weight.dtype != torch.float32 for weight in layer.weights.values()):
        return "its weights are not float32"
    blocks = [c for name in layer.weights for c in layer.constraints(name) if isinstance(c, BlockGrid)]
    if blocks:
        return f"it is in {blocks[0].bits:.3g} bits already, on grids that have no integer form in static quantization"
    return None


def _prepare(
    step: StaticQuantization,
    graph: Graph,
    context: Context,
    batches: Sequence[Sequence[Tensor]],
    layers: frozenset[fx.Node],
    width: int,
) -> None:
    if step.equalize:
        outcome = equalize(graph, record(graph, batches[0]))
        context.notes.append(
            f"{outcome.pairs} pairs of layers equalized; {outcome.skipped} layers had no partner, because of "
            "several readers, an op in between that does not scale, or a constraint"
        )
    if step.smooth is not None:
        strengths = STRENGTHS if step.smooth == "auto" else (step.smooth,)
        smoothed = smooth(graph, [record(graph, inputs) for inputs in batches], strengths, layers, width)
        if not smoothed.all and step.smooth != "auto":
            context.warnings.append(
                "smooth had no effect: there is no group of linear layers that it can be applied to"
            )
        if smoothed.all:
            context.notes.append(smoothed.told())


def _told_ranges(step: StaticQuantization, calibration: Calibration, taken: Mapping[str, int]) -> str:
    how = ", ".join(f"{name} for {count}" for name, count in taken.items())
    chosen = "the best on the outputs: " if step.ranges == "auto" else ""
    return f"ranges of {sum(taken.values())} values from {calibration.examples} examples, {chosen}{how}"


def _keep_float(step: StaticQuantization, graph: Graph, context: Context, found: Sensitivity) -> Sensitivity:
    context.figures["error_all_quantized"] = found.error
    if not found.layers:
        raise StepError(
            f"8 bits move the outputs by {found.error:.1%} and every layer would have to stay float to keep them "
            f"within {step.keep_float:.1%}; raise keep_float, or send calibration data that looks like real inputs"
        )
    floats = [node for node in graph.module.graph.nodes if node in found.alone and node not in found.layers]
    for node in floats:
        how = "computes in float from 8-bit weights" if node in found.stored else "left float"
        context.untouched[layer_name(node)] = (
            f"{how}: in integers it alone would move the outputs by {found.alone[node]:.2%}"
        )
    if floats:
        context.notes.append(
            f"{len(floats)} of {len(found.alone)} layers compute in float: with all in 8 bits the outputs moved by "
            f"{found.error:.2%}, with these in float by {found.error_left:.2%}; keep_float is {step.keep_float:.2%}"
        )
    return found


def _correct_biases(
    graph: Graph, quantized: Quantized, context: Context, simulation: Simulation, batches: Sequence[Sequence[Tensor]]
) -> None:
    """Keep the corrected biases where they bring the outputs nearer to the float ones."""
    before = simulation.error_of(quantized.graph)
    corrections = correct_biases(graph, quantized, batches)
    after = simulation.error_of(quantized.graph)
    if after < before:
        told = f"{len(corrections)} biases corrected: the outputs' error went from {before:.2%} to {after:.2%}"
    else:
        for correction in corrections:
            correction.undo()
        told = f"bias correction did not help ({before:.2%} to {after:.2%}) and was taken back"
    context.notes.append(told)


def _tell_result(context: Context, quantized: Quantized, simulation: Simulation, width: int) -> None:
    error = simulation.error_of(quantized.graph)
    context.figures["error"] = error
    context.figures["layers_quantized"] = len(quantized.layers)
    context.notes.append(
        f"{len(quantized.layers)} layers compute in integers, with weights in {width} bits per channel for "
        f"{context.runtime}; the outputs moved by {error:.2%}"
    )


def _part(progress: Callable[[float, str], None], start: float, end: float, message: str) -> Callable[[float], None]:
    return lambda fraction: progress(start + (end - start) * fraction, message)
