"""Weights and activations in 8 bits: equalize, find ranges, leave float what suffers, quantize, correct the biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from modelpress.steps.static_quantization import StaticQuantization
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.quantization.bias_correction import correct_biases
from workers.engine.quantization.calibration import Calibration, find_ranges
from workers.engine.quantization.equalization import equalize
from workers.engine.quantization.insertion import Quantized, grid_biases, insert
from workers.engine.quantization.lowering import lower
from workers.engine.quantization.placement import place, trait_of
from workers.engine.quantization.ranges import Range
from workers.engine.quantization.rounding import learn_rounding
from workers.engine.quantization.sensitivity import keep_worst_float
from workers.engine.quantization.simulation import MOST_BYTES, Simulation, bytes_per_example, record, relative_error
from workers.engine.quantization.smoothing import smooth
from workers.engine.quantization.weight_bits import weight_bits
from workers.engine.steps import applies
from workers.engine.transforms.fold_batch_norm import fold_batch_norm

FEW = 8
"""Examples that show how ops act."""
TRIED = 64
"""Examples on which ranges and layers are tried out."""
CORRECTED = 256
"""Examples whose mean errors the biases take up, and on which roundings are learned."""


@dataclass(frozen=True)
class Sample:
    """Calibration data and what fits into memory of it, inner results included."""

    calibration: Calibration
    few: tuple[Tensor, ...]
    tried: tuple[Tensor, ...]
    corrected: tuple[Tensor, ...]


@applies(StaticQuantization)
def static_quantization(step: StaticQuantization, graph: Graph, context: Context) -> Graph:
    graph.module.eval().to(context.device)
    width = weight_bits(step.weight_bits, context.runtime)
    sample = _sample(graph, context)
    folded = fold_batch_norm(graph)
    if folded:
        context.notes.append(f"{folded} batch norms are folded into the layers before them")
    lowered = lower(graph, record(graph, sample.few))
    layers = _layers(step, graph, context)
    _prepare(step, graph, context, record(graph, sample.few))

    context.progress(0.1, "finding ranges")
    simulation = Simulation(graph, sample.tried, width)
    placement = place(graph.module.graph, layers)
    ranges, taken = find_ranges(graph, placement, step.ranges, sample.calibration, simulation)
    context.notes.append(_told_ranges(step, sample.calibration, taken))
    context.progress(0.6, "measuring which layers suffer")
    kept = _keep_float(step, graph, context, layers, ranges, simulation)

    context.progress(0.7, "quantizing")
    placement = place(graph.module.graph, kept)
    lowered.restore(graph, placement.integer)
    quantized = insert(graph, place(graph.module.graph, kept), ranges, kept, width)
    if step.adaptive_rounding:
        learned = learn_rounding(
            graph, quantized, sample.corrected, context.seed, _part(context.progress, 0.7, 0.95, "learning roundings")
        )
        context.notes.append(f"the roundings of {learned} layers are learned on {len(sample.corrected[0])} examples")
    if step.bias_correction:
        quantized = _corrected(graph, quantized, context, sample)
    grid_biases(quantized)
    _tell_result(context, graph, quantized, simulation, sample, width)
    return quantized.graph


def _sample(graph: Graph, context: Context) -> Sample:
    if context.calibrate is None:
        raise StepError(
            "static_quantization needs calibration data, and inputs for this model cannot be made up: send some"
        )
    if isinstance(context.calibrate, SyntheticBatches):
        context.notes.append("calibrated on made-up inputs: ranges of real ones may differ, send some hundreds of them")
    batch = graph.inputs[0].shape[0] if graph.inputs[0].shape else None
    calibration = Calibration(
        context.calibrate, context.device, context.seed, batch if isinstance(batch, int) else None
    )
    few = calibration.some(FEW)
    room = max(2, MOST_BYTES // bytes_per_example(graph, few))
    return Sample(calibration, few, calibration.some(min(TRIED, room)), calibration.some(min(CORRECTED, room)))


def _layers(step: StaticQuantization, graph: Graph, context: Context) -> frozenset[fx.Node]:
    """The calls of the selected layers that have an integer form; the others are named in `untouched`."""
    chosen: set[str] = set()
    for layer in graph.layers():
        reason = _why_float(step, layer)
        if reason:
            context.untouched[layer.name] = reason
        else:
            chosen.add(str(layer.node.target))
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in context.untouched.items()) or "it has no layers"
        raise StepError(f"no layer of the model can be quantized ({reasons})")
    return frozenset(
        node for node in graph.module.graph.nodes if node.op == "call_module" and str(node.target) in chosen
    )


def _why_float(step: StaticQuantization, layer: Layer) -> str | None:
    if not step.layers.selects(layer.name):
        return "not selected"
    trait = trait_of(layer.node)
    if trait is None or not trait.weights or not trait.inputs:
        return f"{layer.op.name} has no integer form in static quantization; dynamic_quantization stores its weights in 8 bits"
    if any(weight.dtype != torch.float32 for weight in layer.weights.values()):
        return "its weights are not float32"
    return None


def _prepare(step: StaticQuantization, graph: Graph, context: Context, values: dict[fx.Node, Any]) -> None:
    if step.smooth is not None:
        done, left = smooth(graph, values, step.smooth)
        context.notes.append(
            f"SmoothQuant in front of {done} groups of linear layers; {left} could not be smoothed, "
            "because what feeds them has no scale of its own or other readers"
        )
    if step.equalize:
        outcome = equalize(graph, values)
        context.notes.append(
            f"{outcome.pairs} pairs of layers equalized; {outcome.skipped} layers had no partner, because of "
            "several readers, an op in between that does not scale, or a constraint"
        )


def _told_ranges(step: StaticQuantization, calibration: Calibration, taken: dict[str, int]) -> str:
    how = ", ".join(f"{name} for {count}" for name, count in taken.items())
    chosen = "the best on the outputs: " if step.ranges == "auto" else ""
    return f"ranges of {sum(taken.values())} values from {calibration.examples} examples, {chosen}{how}"


def _keep_float(
    step: StaticQuantization,
    graph: Graph,
    context: Context,
    layers: frozenset[fx.Node],
    ranges: dict[fx.Node, Range],
    simulation: Simulation,
) -> frozenset[fx.Node]:
    result = keep_worst_float(graph.module.graph, layers, ranges, simulation, step.keep_float)
    context.figures["error_all_quantized"] = result.error
    for node in layers - result.layers:
        name = str(node.meta.get("layer", node.target))
        context.untouched[name] = f"left float: alone in 8 bits it moves the outputs by {result.alone[node]:.2%}"
    if layers != result.layers:
        context.notes.append(
            f"{len(layers - result.layers)} of {len(layers)} layers stay float: with all in 8 bits the outputs moved by "
            f"{result.error:.2%}, with these float by {result.error_left:.2%}; keep_float is {step.keep_float:.2%}"
        )
    if not result.layers:
        raise StepError(
            f"8 bits move the outputs by {result.error:.1%} and every layer would have to stay float to keep them "
            f"within {step.keep_float:.1%}; raise keep_float, or send calibration data that looks like real inputs"
        )
    return result.layers


def _corrected(graph: Graph, quantized: Quantized, context: Context, sample: Sample) -> Quantized:
    """Keep the corrected biases where they bring the outputs nearer to the float ones."""
    with torch.no_grad():
        wanted = graph(*sample.corrected)
        before = relative_error(quantized.graph(*sample.corrected), wanted)
        saved = {name: value.clone() for name, value in quantized.graph.module.state_dict().items()}
        corrected = correct_biases(graph, quantized, sample.corrected)
        after = relative_error(quantized.graph(*sample.corrected), wanted)
    if after < before:
        context.notes.append(f"{corrected} biases corrected: the outputs' error went from {before:.2%} to {after:.2%}")
    else:
        quantized.graph.module.load_state_dict(saved, strict=False)
        context.notes.append(f"bias correction did not help ({before:.2%} to {after:.2%}) and was taken back")
    return quantized


def _tell_result(
    context: Context, graph: Graph, quantized: Quantized, simulation: Simulation, sample: Sample, width: int
) -> None:
    with torch.no_grad():
        context.figures["error"] = relative_error(quantized.graph(*sample.tried), simulation.outputs)
    context.figures["layers_quantized"] = len(quantized.layers)
    context.notes.append(
        f"{len(quantized.layers)} layers compute in integers, weights in {width} bits per channel for {context.runtime}; "
        f"the outputs moved by {context.figures['error']:.2%}"
    )


def _part(progress: Callable[[float, str], None], start: float, end: float, message: str) -> Callable[[float], None]:
    return lambda fraction: progress(start + (end - start) * fraction, message)
