"""Store weights in 16 bits, behind a cast that runtimes fold when they load the file."""

from __future__ import annotations

import torch
from torch import Tensor

from modelpress.steps.half_precision import HalfPrecision
from workers.engine.constraints import raw_parameter, stored_bits
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.quantization.half import Half
from workers.engine.selection import selected, tell_untouched
from workers.engine.steps import applies

BOUNDS = {torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""Relative error of a layer's weights above which it stays float: some times what rounding costs an ordinary layer."""


@applies(HalfPrecision)
def half_precision(step: HalfPrecision, graph: Graph, context: Context) -> Graph:
    dtype = getattr(torch, step.dtype)
    stored: dict[Tensor, int] = {}
    for layer in selected(step.layers, graph):
        reasons = {}
        for name, weight in layer.weights.items():
            reason = why_not(weight.detach(), dtype, stored_bits(layer.module, name))
            if reason:
                reasons[name] = reason
            else:
                layer.constrain(name, Half(dtype))
                stored[raw_parameter(layer.module, name)] = weight.numel()
        tell_untouched(context, layer, reasons)
    if not stored:
        told = "; ".join(f"{name}: {reason}" for name, reason in context.untouched.items())
        raise StepError(f"no weight of the selected layers can be stored as {step.dtype} ({told})")
    context.notes.append(f"{sum(stored.values())} weights are stored as {step.dtype} and used as float32")
    return graph


def why_not(weight: Tensor, dtype: torch.dtype, bits: float) -> str | None:
    """Why a weight that takes so many bits now cannot be stored in this dtype, or None where it can."""
    if bits < 32:
        return f"it is stored in {bits:.3g} bits already"
    if weight.dtype != torch.float32:
        return f"its weights are {weight.dtype}, not float32".replace("torch.", "")
    if weight.ndim < 2:
        return "its weights are a vector: too small to be worth it"
    largest = float(weight.abs().max())
    if not largest <= torch.finfo(dtype).max:
        return f"its largest weight, {largest:.3g}, does not fit; bfloat16 would hold it"
    error = relative_error(weight, dtype)
    if error > BOUNDS[dtype]:
        return f"it would lose too much: relative error {error:.2g}, and {BOUNDS[dtype]:g} is the bound"
    return None


def relative_error(weight: Tensor, dtype: torch.dtype) -> float:
    norm = weight.norm()
    return float((weight - weight.to(dtype).to(weight.dtype)).norm() / norm) if norm else 0.0
