"""The per-layer table: what became of each layer's weights, and why some were left alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modelpress.report import LayerReport
from workers.engine.graph import Graph, Layer

AT_ONCE = 1 << 20
GONE = "gone: a step took it out, folded it into a neighbour, or put others in its place"
ADDED = "added by a step"
UNCHANGED = 1e-12
"""Noise against signal below which weights are the same: float32 rounds at about 1e-14."""


def layer_table(original: Graph, result: Graph, untouched: dict[str, str]) -> tuple[LayerReport, ...]:
    """One row a layer of the original, in its order, then one a layer that steps have added.

    Layers that are gone have no parameters left, added ones had none, and their notes say so.
    """
    before = {layer.name: layer for layer in original.layers()}
    after = {layer.name: layer for layer in result.layers()}
    names = dict.fromkeys((*before, *after))
    return tuple(_row(before.get(name), after.get(name), untouched.get(name, "")) for name in names)


@torch.no_grad()
def _row(before: Layer | None, after: Layer | None, note: str) -> LayerReport:
    layer = before or after
    if layer is None:
        raise ValueError("a row is of a layer")
    was = before.weights if before is not None else {}
    now = after.weights if after is not None else {}
    parameters = sum(weight.numel() for weight in now.values())
    nonzeros = sum(int(torch.count_nonzero(weight)) for weight in now.values())
    return LayerReport(
        name=layer.name,
        type=layer.op.name,
        parameters_before=sum(weight.numel() for weight in was.values()),
        parameters_after=parameters,
        nonzeros=nonzeros,
        sparsity=1 - nonzeros / parameters if parameters else 0.0,
        bits=_bits(after, now, parameters) if after is not None and parameters else 0.0,
        snr_db=_snr(layer, was, now),
        note="; ".join(filter(None, (GONE if after is None else ADDED if before is None else "", note))),
    )


def _bits(layer: Layer, weights: dict[str, Tensor], parameters: int) -> float:
    """Of a stored value, mean over the layer's weights: the last constraint that stores differently decides."""
    total = 0.0
    for name, weight in weights.items():
        stored = [c.bits for c in layer.constraints(name) if c.bits < 32]
        total += weight.numel() * (stored[-1] if stored else weight.element_size() * 8)
    return total / parameters


def _snr(layer: Layer, before: dict[str, Tensor], after: dict[str, Tensor]) -> float | None:
    """Each output channel up to its scale, which folded norms and equalization change without a loss.

    None where nothing changed, or where the shapes did, so that there is nothing to subtract.
    """
    if not before or set(before) != set(after) or any(before[name].shape != after[name].shape for name in before):
        return None
    powers = [_powers(before[name], after[name], layer.channel_axis(name)) for name in before]
    signal, noise = (sum(power) for power in zip(*powers, strict=True))
    return None if noise <= signal * UNCHANGED else 10 * math.log10(signal / noise)


def _powers(before: Tensor, after: Tensor, axis: int) -> tuple[float, float]:
    """Of the signal and of the noise, summed in double precision, some channels at a time."""
    was, now = (_by_channel(weight, axis) for weight in (before, after))
    rows = max(1, AT_ONCE // max(1, was.shape[1]))
    signal = noise = 0.0
    for one, other in zip(was.split(rows), now.split(rows), strict=True):
        x, y = one.double(), other.double()
        power = y.square().sum(1, keepdim=True)
        scale = torch.where(power > 0, (x * y).sum(1, keepdim=True) / power.clamp_min(1e-300), 1.0)
        signal += float(x.square().sum())
        noise += float((x - (scale * y if x.shape[1] > 1 else y)).square().sum())
    return signal, noise


def _by_channel(weight: Tensor, axis: int) -> Tensor:
    return weight.movedim(axis, 0).flatten(1) if weight.ndim > 1 else weight[:, None]
