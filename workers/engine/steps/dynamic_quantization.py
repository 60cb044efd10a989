"""Weights of linear, recurrent and embedding layers in 8 bits; integers at run time where the runtime gains by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from modelpress.steps.dynamic_quantization import DynamicQuantization
from workers.engine.constraints import told_bits
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.quantization.calibration import Calibration
from workers.engine.quantization.grid import IntegerGrid
from workers.engine.quantization.leaves import become
from workers.engine.quantization.nodes import calls_of
from workers.engine.quantization.simulation import MOST_BYTES, Simulation, bytes_per_example
from workers.engine.quantization.storage import channel_axes, integer_form
from workers.engine.quantization.weight_bits import stored_bits, weight_bits
from workers.engine.steps import applies

TRIALS = 512
"""Examples, over all layers, on which it is measured what quantized activations do."""


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
    """Compute in float what would move the outputs too much with quantized activations."""
    if context.calibrate is None or all(form.integer is None for form in forms):
        return forms
    calibration = Calibration.of(graph, context)
    room = max(2, MOST_BYTES // bytes_per_example(graph, calibration.some(2)[0]))
    simulation = Simulation(graph, calibration.some(min(room, max(4, min(32, TRIALS // len(forms))))))
    harmless = []
    for form in forms:
        if form.integer is None:
            harmless.append(form)
            continue
        error = simulation.error_of_leaves(
            dict.fromkeys(calls_of(form.layer.node), become(form.layer.module, form.integer))
        )
        if error > step.largest_error:
            context.notes.append(
                f"{form.layer.name} computes in float: quantizing its activations would move the outputs by {error:.2%}"
            )
        harmless.append(Form(form.layer, form.integer if error <= step.largest_error else None))
    return harmless


def _quantize(form: Form, graph: Graph, step: DynamicQuantization, context: Context) -> None:
    layer = form.layer
    for name, weight in layer.weights.items():
        if weight.dim() < 2:
            continue
        integer = form.integer is not None
        width = weight_bits(step.weight_bits, context.runtime) if integer else stored_bits(step.weight_bits)
        layer.constrain(name, IntegerGrid.fit(weight, channel_axes(layer, name), width, folded=not integer))
    if form.integer is not None:
        graph.module.set_submodule(str(layer.node.target), become(layer.module, form.integer))
