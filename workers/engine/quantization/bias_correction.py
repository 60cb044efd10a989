"""Takes the mean error that quantization leaves in each layer's output out of its bias (Nagel et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from workers.engine.graph import Graph
from workers.engine.quantization.equalization import channel_axis
from workers.engine.quantization.grid import raw_parameter
from workers.engine.quantization.insertion import Quantized
from workers.engine.quantization.lockstep import walk
from workers.engine.quantization.placement import trait_of


def correct_biases(graph: Graph, quantized: Quantized, inputs: Sequence[Tensor]) -> int:
    """Layer by layer on these inputs, so that each correction sees those before it. Returns how many were corrected."""
    corrected = 0

    def correct(node: fx.Node, source: Tensor, wanted: Tensor) -> None:
        nonlocal corrected
        trait = trait_of(node)
        if trait is None or trait.bias is None:
            return
        layer = quantized.graph.module.get_submodule(str(node.target))
        axis = channel_axis(node, wanted)
        others = [position for position in range(wanted.dim()) if position != axis]
        error = (wanted - layer(source)).mean(others)
        _add_to_bias(layer, trait.bias, error)
        corrected += 1

    walk(graph, quantized, inputs, correct)
    return corrected


@torch.no_grad()
def _add_to_bias(layer: nn.Module, name: str, error: Tensor) -> None:
    if getattr(layer, name, None) is None:
        setattr(layer, name, nn.Parameter(torch.zeros_like(error)))
    raw_parameter(layer, name).data.add_(error)
