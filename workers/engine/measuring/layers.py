"""The per-layer table: what became of each layer's weights, and why some were left alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modelpress.report import LayerReport
from workers.engine.graph import Graph, Layer

AT_ONCE = 1 << 20


def layer_table(original: Graph, result: Graph, untouched: dict[str, str]) -> tuple[LayerReport, ...]:
    """One row a layer of the original, in its order; layers that are gone have no parameters left."""
    after = {layer.name: layer for layer in result.layers()}
    return tuple(_row(layer, after.get(layer.name), untouched.get(layer.name, "")) for layer in original.layers())


@torch.no_grad()
def _row(before: Layer, after: Layer | None, note: str) -> LayerReport:
    was = before.weights
    now = after.weights if after is not None else {}
    parameters = sum(weight.numel() for weight in now.values())
    nonzeros = sum(int(torch.count_nonzero(weight)) for weight in now.values())
    return LayerReport(
        name=before.name,
        type=before.op.name,
        parameters_before=sum(weight.numel() for weight in was.values()),
        parameters_after=parameters,
        nonzeros=nonzeros,
        sparsity=1 - nonzeros / parameters if parameters else 0.0,
        bits=_bits(after, now, parameters) if after is not None and parameters else 0.0,
        snr_db=_snr(was, now),
        note=note,
    )


def _bits(layer: Layer, weights: dict[str, Tensor], parameters: int) -> float:
    """Of a stored value, mean over the layer's weights: the last constraint that stores differently decides."""
    total = 0.0
    for name, weight in weights.items():
        stored = [c.bits for c in layer.constraints(name) if c.bits < 32]
        total += weight.numel() * (stored[-1] if stored else weight.element_size() * 8)
    return total / parameters


def _snr(before: dict[str, Tensor], after: dict[str, Tensor]) -> float | None:
    """None where nothing changed, or where the shapes did, so that there is nothing to subtract."""
    if set(before) != set(after) or any(before[name].shape != after[name].shape for name in before):
        return None
    powers = [_powers(before[name], after[name]) for name in before]
    signal, noise = (sum(power) for power in zip(*powers, strict=True))
    return None if noise == 0 or signal == 0 else 10 * math.log10(signal / noise)


def _powers(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Of the signal and of the noise, summed in double precision, some values at a time."""
    signal = noise = 0.0
    for was, now in zip(before.flatten().split(AT_ONCE), after.flatten().split(AT_ONCE), strict=True):
        signal += float(was.double().square().sum())
        noise += float((was.double() - now.double()).square().sum())
    return signal, noise
