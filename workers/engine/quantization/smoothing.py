"""SmoothQuant: move outliers of activations into the weights that read them (Xiao et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from workers.engine.quantization.nodes import module_of

SMALLEST = 1e-5


def smooth(graph: Graph, values: Sequence[Mapping[fx.Node, Any]], strength: float) -> tuple[int, int]:
    """Scale what feeds linear layers only, per channel, into its producer. Returns (done, could not be done).

    s = max|x|^strength / max|w|^(1 - strength); the producer is divided by it and the readers' weights multiplied.
    `values`: the result of every node, for one or several batches.
    """
    done = left = 0
    tied = tied_parameters(graph.module)
    for node in graph.module.graph.nodes:
        readers = list(node.users)
        if not readers or not all(is_layer(user) and module_of(user).weight.dim() == 2 for user in readers):
            continue
        value = values[0][node]
        producer = module_of(node) if node.op == "call_module" else None
        if (
            producer is None
            or not may_scale(producer, tied)
            or not _writes_channels(node, producer, value)
            or not all(user.args[0] is node and may_scale(module_of(user), tied) for user in readers)
        ):
            left += 1
            continue
        largest = torch.stack([seen[node].abs().flatten(0, -2).amax(0) for seen in values]).amax(0)
        weights = torch.stack([largest_by_input(module_of(user)) for user in readers]).amax(0)
        scale = largest.clamp_min(SMALLEST).pow(strength) / weights.clamp_min(SMALLEST).pow(1 - strength)
        scale = torch.where((largest > 0) & (weights > 0), scale, torch.ones_like(scale))
        _divide(producer, scale)
        for user in readers:
            scale_input(module_of(user), scale)
        done += 1
    return done, left


def _writes_channels(node: fx.Node, producer: nn.Module, value: Tensor) -> bool:
    """Whether the producer has a factor for each channel of the last dimension that can be divided."""
    weight = getattr(producer, "weight", None)
    if not isinstance(weight, Tensor) or value.dim() < 2:
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
