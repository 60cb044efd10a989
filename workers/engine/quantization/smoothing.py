"""SmoothQuant: move outliers of activations into the weights that read them (Xiao et al., 2023).

The producer of the values takes the scales up where it can; else a product in front of the layers does, which costs
little beside them: behind a GELU, or where a residual reads the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from workers.engine.constraints import tied_parameters
from workers.engine.graph import Graph
from workers.engine.quantization.equalization import (
    channel_axis,
    is_layer,
    largest_by_input,
    may_scale,
    scale_input,
    scale_output,
)
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.grid import IntegerGrid
from workers.engine.quantization.nodes import module_of
from workers.engine.quantization.placement import origin_of, place
from workers.engine.quantization.ranges import Range

SMALLEST = 1e-5
STRENGTHS = (0.5, 0.7, 0.85)
ROWS = 128
"""Of the values, on which strengths are tried out."""
SHARES = (1.0, 0.6)
"""Of the values' range: how well a layer answers is judged by the better one, as its range is chosen later."""
WORTH = 0.8
"""A product in front of layers must leave less than this share of their error."""


@dataclass
class Smoothed:
    """Groups of layers that read the same values."""

    absorbed: int = 0
    """Whose producer took the scales up."""
    multiplied: int = 0
    """That have a product in front of them now."""
    left: int = 0

    @property
    def all(self) -> int:
        return self.absorbed + self.multiplied

    def told(self) -> str:
        return (
            f"SmoothQuant in front of {self.all} groups of linear layers, {self.multiplied} of them by a product of "
            f"its own; {self.left} could not be smoothed or would not gain by it"
        )


def smooth(
    graph: Graph,
    values: Sequence[Mapping[fx.Node, Any]],
    strengths: Sequence[float],
    layers: frozenset[fx.Node],
    width: int,
) -> Smoothed:
    """Scale what these linear layers read, per channel, in place: the graph answers as before, up to rounding.

    s = max|x|^strength / max|w|^(1 - strength); the values are divided by it and the readers' weights multiplied.
    Of several strengths each group of layers gets the one that leaves least error, or none. `values`: the result of
    every node, for one or several batches; `width`: bits of the weights.
    """
    smoothed = Smoothed()
    tied = tied_parameters(graph.module)
    integer = place(graph.module.graph, layers).integer
    for node in list(graph.module.graph.nodes):
        readers = [user for user in node.users if user in layers and _reads_rows(user, node)]
        if not readers:
            continue
        absorbs = len(readers) == len(node.users) and _absorbs(node, values[0][node], tied)
        if not all(may_scale(module_of(user), tied) for user in readers) or not (absorbs or _is_float(node, integer)):
            smoothed.left += 1
            continue
        scale = _best(node, readers, values, strengths, width, absorbs=absorbs)
        if scale is None:
            smoothed.left += 1
            continue
        for user in readers:
            scale_input(module_of(user), scale)
        if absorbs:
            _divide(module_of(node), scale)
            smoothed.absorbed += 1
        else:
            _multiply(graph, node, readers, 1 / scale)
            smoothed.multiplied += 1
    graph.module.recompile()
    return smoothed


def _reads_rows(user: fx.Node, node: fx.Node) -> bool:
    return is_layer(user) and user.args[0] is node and module_of(user).weight.dim() == 2


def _is_float(node: fx.Node, integer: frozenset[fx.Node]) -> bool:
    """Whether the model computes the values in floats: a product between integer ops would cost more than it gains."""
    origin = origin_of(node)
    return origin not in integer and origin.op not in ("placeholder", "get_attr")


def _best(
    node: fx.Node,
    readers: Sequence[fx.Node],
    values: Sequence[Mapping[fx.Node, Any]],
    strengths: Sequence[float],
    width: int,
    *,
    absorbs: bool,
) -> Tensor | None:
    """The scales that leave the layers least error; those of the strength that is given, where it is one."""
    rows = torch.cat([seen[node].flatten(0, -2) for seen in values])
    weights = [module_of(user).weight.detach() for user in readers]
    largest = rows.abs().amax(0)
    read = torch.stack([largest_by_input(module_of(user)) for user in readers]).amax(0)
    alive = (largest > 0) & (read > 0)
    candidates = [
        torch.where(alive, largest.clamp_min(SMALLEST) ** power / read.clamp_min(SMALLEST) ** (1 - power), 1.0)
        for power in strengths
    ]
    if len(candidates) == 1:
        return candidates[0]
    sample = rows[:: max(1, len(rows) // ROWS)]
    errors = [_error(sample, weights, scale, width) for scale in candidates]
    least = min(range(len(errors)), key=errors.__getitem__)
    bound = _error(sample, weights, torch.ones_like(read), width) * (1.0 if absorbs else WORTH)
    return candidates[least] if errors[least] < bound else None


def _error(rows: Tensor, weights: Sequence[Tensor], scale: Tensor, width: int) -> float:
    """Relative error of the layers in integers, added up."""
    scaled, total = rows / scale, 0.0
    low, high = (float(bound) for bound in scaled.aminmax())
    grids = [FakeQuantize.of(Range.around_zero(share * low, share * high)).to(rows.device) for share in SHARES]
    seen = [grid(scaled) for grid in grids]
    for weight in weights:
        rounded, wanted = IntegerGrid.fit(weight * scale, (0,), width)(weight * scale), rows @ weight.t()
        norm = float(wanted.norm().clamp_min(SMALLEST))
        total += min(float((some @ rounded.t() - wanted).norm()) / norm for some in seen)
    return total


def _absorbs(node: fx.Node, value: Tensor, tied: frozenset[nn.Parameter]) -> bool:
    """Whether the producer has a factor for each channel of the last dimension that can be divided."""
    producer = module_of(node) if node.op == "call_module" else None
    weight = getattr(producer, "weight", None)
    if producer is None or not may_scale(producer, tied) or not isinstance(weight, Tensor) or value.dim() < 2:
        return False
    if is_layer(node):
        return weight.dim() == 2 and channel_axis(node, value) == value.dim() - 1
    return weight.shape == value.shape[-1:] and getattr(producer, "axis", None) in (-1, value.dim() - 1)


@torch.no_grad()
def _divide(producer: Any, scale: Tensor) -> None:
    weight = producer.weight
    if weight.dim() > 1:
        scale_output(producer, 1 / scale)
        return
    weight.data.div_(scale)
    bias = getattr(producer, "bias", None)
    if bias is not None:
        bias.data.div_(scale)


def _multiply(graph: Graph, node: fx.Node, readers: Sequence[fx.Node], factors: Tensor) -> None:
    number = sum(name.startswith("smooth_") for name, _ in graph.module.named_buffers())
    graph.module.register_buffer(f"smooth_{number}", factors)
    with graph.module.graph.inserting_after(node):
        stored = graph.module.graph.get_attr(f"smooth_{number}")
    with graph.module.graph.inserting_after(stored):
        product = graph.module.graph.call_function(torch.mul, (node, stored))
    product.meta = {key: node.meta[key] for key in ("shape", "sizes") if key in node.meta}
    for user in readers:
        user.replace_input_with(node, product)
