"""Weights of linear, recurrent and embedding layers in 8 bits; integers at run time where the runtime gains by them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from modelpress.steps.dynamic_quantization import DynamicQuantization
from workers.engine.constraints import told_bits
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.quantization.calibration import Calibration
from workers.engine.quantization.dynamic import DynamicLinear
from workers.engine.quantization.grid import fitted
from workers.engine.quantization.leaves import become, without_constraints
from workers.engine.quantization.nodes import calls_of
from workers.engine.quantization.simulation import MOST_BYTES, Simulation, bytes_per_example, record
from workers.engine.quantization.smoothing import STRENGTHS, smooth
from workers.engine.quantization.storage import channel_axes, integer_form
from workers.engine.quantization.weight_bits import stored_bits, weight_bits
from workers.engine.steps import applies

TRIALS = 32
"""Examples on which it is measured what quantized activations do."""
SMOOTHED = 256
"""Examples that show how large the values in each channel get."""
ROUNDS = 16
"""The layers that hurt most go in at most this many portions."""


@dataclass(frozen=True)
class Form:
    """A layer and how it will run: as a leaf of this class in integers, or in float from stored integers."""

    layer: Layer
    integer: type[nn.Module] | None


@applies(DynamicQuantization)
def dynamic_quantization(step: DynamicQuantization, graph: Graph, context: Context) -> Graph:
    graph.module.eval().to(context.device)
    forms = [Form(layer, integer_form(layer.module, context.runtime)) for layer in _selected(step, graph, context)]
    forms = _without_harm(step, graph, context, forms)
    for form in forms:
        _quantize(form, graph, step, context)
    integer = sum(form.integer is not None for form in forms)
    context.figures["layers_quantized"] = len(forms)
    context.figures["layers_in_integers"] = integer
    context.notes.append(
        f"{len(forms)} layers are stored in 8 bits per channel; {integer} of them compute in integers, the others in "
        "float, because that is faster for them or their activations must not be quantized"
    )
    return graph


def _selected(step: DynamicQuantization, graph: Graph, context: Context) -> list[Layer]:
    layers = []
    for layer in graph.layers():
        reason = _why_not(step, layer)
        if reason:
            context.untouched[layer.name] = reason
        else:
            layers.append(layer)
    if not layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in context.untouched.items()) or "it has no layers"
        raise StepError(f"no layer of the model can be quantized at run time ({reasons})")
    return layers


def _why_not(step: DynamicQuantization, layer: Layer) -> str | None:
    if not step.layers.selects(layer.name):
        return "not selected"
    if isinstance(layer.module, (Conv, ConvTranspose)):
        return "a convolution would get slower; static_quantization is for those"
    if any(weight.dtype != torch.float32 for weight in layer.weights.values()):
        return "its weights are not float32: export the model in float32"
    if all(weight.dim() < 2 for weight in layer.weights.values()):
        return "its weights are a vector: too small to be worth it"
    for name in layer.weights:
        if bits := told_bits(layer.module, name):
            return f"it is in {bits} already"
    return None


def _without_harm(step: DynamicQuantization, graph: Graph, context: Context, forms: list[Form]) -> list[Form]:
    """Compute in float what moves the outputs most for what it gains, as long as all together move them too much."""
    if context.calibrate is None or all(form.integer is None for form in forms):
        return forms
    calibration = Calibration.of(graph, context)
    few = calibration.some(2)
    room = max(2, MOST_BYTES // bytes_per_example(graph, few[0]))
    batches, before = calibration.some(min(room, TRIALS)), graph.copy()
    if step.smooth:
        _smooth(step, graph, context, forms, calibration.some(min(room, SMOOTHED)))
    simulation = Simulation(graph, batches, before)
    width = weight_bits(step.weight_bits, context.runtime)
    leaves = {form: _in_integers(form, width) for form in forms if form.integer is not None}

    def error(chosen: Iterable[Form]) -> float:
        return simulation.error_of_leaves({node: leaves[form] for form in chosen for node in calls_of(form.layer.node)})

    integer, first = list(leaves), error(leaves)
    context.figures["error_all_in_integers"] = left = first
    if first > step.largest_error:
        alone = {form: error([form]) for form in integer}
        integer.sort(key=lambda form: alone[form] ** 2 / sum(w.numel() for w in form.layer.weights.values()))
        portion = max(1, math.ceil(len(integer) / ROUNDS))
        while integer and left > step.largest_error:
            integer = integer[:-portion]
            left = error(integer) if integer else 0.0
        floats = [form.layer.name for form in leaves if form not in integer]
        context.notes.append(
            f"{len(floats)} layers compute in float: with quantized activations in all of them the outputs moved by "
            f"{first:.2%}, with these in float by {left:.2%}, and largest_error is {step.largest_error:.2%}: "
            f"{', '.join(floats)}"
        )
    context.figures["error"] = left
    return [form if form in integer else Form(form.layer, None) for form in forms]


def _smooth(
    step: DynamicQuantization, graph: Graph, context: Context, forms: list[Form], batches: Sequence[Sequence[Tensor]]
) -> None:
    nodes = frozenset(form.layer.node for form in forms if form.integer is DynamicLinear)
    values = [record(graph, inputs) for inputs in batches]
    smoothed = smooth(graph, values, STRENGTHS, nodes, weight_bits(step.weight_bits, context.runtime))
    if smoothed.all:
        context.notes.append(smoothed.told())


def _in_integers(form: Form, width: int) -> nn.Module:
    """The leaf as it would run, its constraints taken up."""
    leaf = become(without_constraints(form.layer.module), cast("type[nn.Module]", form.integer))
    for name, weight in form.layer.weights.items():
        if weight.dim() > 1:
            grid = fitted(form.layer.module, name, channel_axes(form.layer, name), width)
            leaf.register_parameter(name, nn.Parameter(grid(weight).detach(), requires_grad=False))
    return leaf


def _quantize(form: Form, graph: Graph, step: DynamicQuantization, context: Context) -> None:
    layer = form.layer
    for name, weight in layer.weights.items():
        if weight.dim() < 2:
            continue
        integer = form.integer is not None
        width = weight_bits(step.weight_bits, context.runtime) if integer else stored_bits(step.weight_bits)
        layer.constrain(name, fitted(layer.module, name, channel_axes(layer, name), width, folded=not integer))
    if form.integer is not None:
        graph.module.set_submodule(str(layer.node.target), become(layer.module, form.integer))
