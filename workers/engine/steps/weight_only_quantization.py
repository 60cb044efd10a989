"""Weights in 8 bits or fewer: on grids by themselves, or by GPTQ where there is data; what hurts most in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from modelpress.steps.weight_only_quantization import WeightOnlyQuantization
from workers.engine.constraints import told_bits
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.ops.linear import Linear
from workers.engine.quantization.bias_correction import correct_biases
from workers.engine.quantization.block_grid import BlockGrid
from workers.engine.quantization.calibration import Calibration
from workers.engine.quantization.insertion import Quantized
from workers.engine.quantization.nodes import module_of
from workers.engine.quantization.prefix import quantize_in_order
from workers.engine.quantization.simulation import MOST_BYTES, Simulation, bytes_per_example
from workers.engine.quantization.weight_only import Options, Quantizer
from workers.engine.quantization.widening import widen_worst
from workers.engine.selection import selected, tell_untouched
from workers.engine.steps import applies

GROUPS: dict[int, int | None] = {8: 128, 4: 64, 3: 64, 2: 32}
"""Weights with one scale, where nobody says."""
FEWEST = 256
"""Weights that are worth the nodes that unfold them."""
CALIBRATED, MEASURED = 256, 64
"""Examples that GPTQ looks at, and on which errors are measured."""

Chosen = dict[str, tuple[Layer, Sequence[str]]]


@applies(WeightOnlyQuantization)
def weight_only_quantization(step: WeightOnlyQuantization, graph: Graph, context: Context) -> Graph:
    graph.module.eval().to(context.device)
    chosen = _chosen(step, graph, context)
    method = _method(step, context)
    before = graph.copy()
    quantizer = Quantizer(graph, _options(step, context, method))
    calibration = Calibration.of(graph, context) if context.calibrate is not None else None
    room = max(2, MOST_BYTES // bytes_per_example(graph, calibration.some(2)[0])) if calibration else 0
    if method == "gptq" and calibration is not None:
        progress = _part(context.progress, 0.0, 0.8, "rounding the weights")
        # values are dropped after their last reader: several times more fit than all at once
        quantize_in_order(quantizer, chosen, calibration.some(min(CALIBRATED, 8 * room)), progress)
    else:
        for index, (layer, names) in enumerate(chosen.values()):
            context.progress(0.8 * index / len(chosen), "rounding the weights")
            for name in names:
                quantizer.quantize(layer, name)
    if calibration is None:
        if step.largest_error < 1:
            context.warnings.append("largest_error had no effect: there are no inputs to measure errors on")
        _tell(step, context, quantizer, chosen, method)
        return graph
    context.progress(0.8, "measuring")
    simulation = Simulation(before, calibration.some(min(room, MEASURED)))
    if step.largest_error < 1:
        widen_worst(
            before,
            quantizer,
            {target: layer for target, (layer, _) in chosen.items()},
            simulation,
            step.largest_error,
            context,
        )
    _tell(step, context, quantizer, chosen, method)
    if step.bias_correction and not isinstance(context.calibrate, SyntheticBatches):
        _correct_biases(before, graph, context, simulation, calibration.some(min(room, MEASURED * 2)))
    error = simulation.error_of(graph)
    context.figures["error"] = error
    context.notes.append(f"the outputs moved by {error:.2%}{_on(context)}")
    return graph


def _chosen(step: WeightOnlyQuantization, graph: Graph, context: Context) -> Chosen:
    """By target. Raises StepError, with all reasons, where no weight can be stored in fewer bits."""
    chosen: Chosen = {}
    every: dict[str, str] = {}
    for layer in selected(step.layers, graph):
        reasons = {name: _why_not(layer, name, weight) for name, weight in layer.weights.items()}
        left = {name: reason for name, reason in reasons.items() if reason is not None}
        tell_untouched(context, layer, left)
        every |= {f"{layer.name}: {reason}": "" for reason in left.values()}
        names = [name for name in reasons if name not in left]
        if names:
            chosen[str(layer.node.target)] = layer, names
    if not chosen:
        raise StepError(f"no weight can be stored in {step.bits} bits ({'; '.join(every) or 'there are no weights'})")
    return chosen


def _why_not(layer: Layer, name: str, weight: Tensor) -> str | None:
    if weight.dtype != torch.float32:
        return "its weights are not float32: export the model in float32"
    if weight.dim() < 2:
        return "its weights are a vector: too small to be worth it"
    if weight.numel() < FEWEST:
        return f"{weight.numel()} weights are too few: what unfolds them would take more bytes than they"
    bits = told_bits(layer.module, name)
    return None if bits is None else f"it is stored in {bits} already"


def _method(step: WeightOnlyQuantization, context: Context) -> Literal["rtn", "hqq", "gptq"]:
    made_up = isinstance(context.calibrate, SyntheticBatches)
    if step.method == "auto":
        return "hqq" if context.calibrate is None or made_up else "gptq"
    if step.method == "gptq":
        if context.calibrate is None:
            raise StepError("gptq needs inputs, and none can be made up for this model: send some as data.calibrate")
        if made_up:
            context.notes.append("gptq looked at made-up inputs: some hundreds of real ones would do better")
    return step.method


def _options(step: WeightOnlyQuantization, context: Context, method: str) -> Options:
    return Options(
        width=step.bits,
        group=GROUPS[step.bits] if step.group_size == "auto" else step.group_size,
        symmetric=step.symmetric,
        half_quadratic=method == "hqq",
        products=step.products == "auto" and context.runtime != "cuda",
    )


def _tell(step: WeightOnlyQuantization, context: Context, quantizer: Quantizer, chosen: Chosen, method: str) -> None:
    grids = {raw: found[0] for raw, found in quantizer.grids.items()}
    weights = sum(raw.numel() for raw in grids)
    bits = sum(grid.bits * raw.numel() for raw, grid in grids.items()) / weights
    group = quantizer.options.group
    each = "each channel" if group is None else f"each group of about {group}"
    how = {"rtn": "each rounded by itself", "hqq": "on grids that leave few large errors", "gptq": "rounded by GPTQ"}
    told = how[method]
    if method == "gptq":
        others = [layer.name for layer, _ in chosen.values() if layer.name not in quantizer.compensated]
        if others:
            told += f" (not {', '.join(others)}: there each is rounded by itself)"
    context.notes.append(
        f"{weights:,} weights of {len(chosen)} layers in {_widths(step, grids.values())} bits with a scale for {each}, "
        f"{told}: {bits:.3g} bits a weight in all"
    )
    products = sum(grid.product for found in quantizer.grids.values() for grid in found)
    if products:
        context.notes.append(
            f"{products} matrices are multiplied as they are stored, and what they are multiplied with is rounded to "
            "8 bits; products: float keeps it as it is"
        )
    context.figures |= {"weights_quantized": weights, "bits": bits, "products": products}


def _widths(step: WeightOnlyQuantization, grids: Iterable[BlockGrid]) -> str:
    wide = sum(grid.width > step.bits for grid in grids)
    return f"{step.bits}" if not wide else f"{step.bits} (8 for {wide} of them)"


def _correct_biases(
    before: Graph, graph: Graph, context: Context, simulation: Simulation, batches: Sequence[Sequence[Tensor]]
) -> None:
    twin = dict(zip(before.module.graph.nodes, graph.module.graph.nodes, strict=True))
    layers = tuple(
        node
        for node in twin.values()
        if node.op == "call_module" and isinstance(module_of(node), (Linear, Conv, ConvTranspose))
    )
    was = simulation.error_of(graph)
    corrections = correct_biases(before, Quantized(graph, twin, layers), batches)
    now = simulation.error_of(graph)
    if now < was:
        context.notes.append(
            f"the biases of {len(corrections)} layers corrected: the outputs' error went from {was:.2%} to {now:.2%}"
        )
        return
    for correction in corrections:
        correction.undo()
    context.notes.append(f"bias correction did not help ({was:.2%} to {now:.2%}) and was taken back")


def _on(context: Context) -> str:
    return " on made-up inputs" if isinstance(context.calibrate, SyntheticBatches) else ""


def _part(progress: Callable[[float, str], None], start: float, end: float, message: str) -> Callable[[float], None]:
    return lambda fraction: progress(start + (end - start) * fraction, message)
