"""Takes the mean error that quantization leaves in each layer's output out of its bias (Nagel et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from workers.engine.constraints import raw_parameter, tied_parameters
from workers.engine.graph import Graph
from workers.engine.quantization.equalization import channel_axis
from workers.engine.quantization.insertion import Quantized
from workers.engine.quantization.lockstep import walk
from workers.engine.quantization.nodes import calls_of, module_of
from workers.engine.quantization.placement import trait_of


@dataclass(frozen=True)
class Correction:
    layer: nn.Module
    name: str
    before: Tensor | None
    """The bias that was there."""

    @torch.no_grad()
    def undo(self) -> None:
        if self.before is None:
            setattr(self.layer, self.name, None)
        else:
            raw_parameter(self.layer, self.name).copy_(self.before)


def correct_biases(graph: Graph, quantized: Quantized, batches: Sequence[Sequence[Tensor]]) -> list[Correction]:
    """Layer by layer on these inputs, so that each correction sees those before it. Shared biases stay."""
    tied = tied_parameters(quantized.graph.module)
    corrections: list[Correction] = []

    def correct(node: fx.Node, source: Tensor, wanted: Tensor) -> None:
        trait, layer = trait_of(node), module_of(node)
        name = "bias" if getattr(layer, "bias", None) is not None else trait and trait.bias
        if not name or len(calls_of(node)) > 1:
            return
        if getattr(layer, name, None) is not None and raw_parameter(layer, name) in tied:
            return
        axis = channel_axis(node, wanted)
        others = [position for position in range(wanted.dim()) if position != axis]
        error = (wanted - layer(source)).mean(others)
        corrections.append(_add_to_bias(layer, name, error))

    walk(graph, quantized, batches, correct)
    return corrections


def _add_to_bias(layer: nn.Module, name: str, error: Tensor) -> Correction:
    if getattr(layer, name, None) is None:
        setattr(layer, name, nn.Parameter(error.clone()))
        return Correction(layer, name, None)
    raw = raw_parameter(layer, name)
    before = raw.detach().clone()
    raw.data.add_(error)
    return Correction(layer, name, before)
