"""Weights as they are before any training, drawn as PyTorch draws those of its own layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from workers.engine.constraints import raw_parameter
from workers.engine.graph import Graph
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.ops.group_normalization import GroupNorm, InstanceNorm
from workers.engine.ops.indexing import Embedding
from workers.engine.ops.linear import Linear
from workers.engine.ops.normalization import BatchNorm, LayerNorm, RMSNorm
from workers.engine.ops.recurrent_cells import Recurrent
from workers.engine.quantization.nodes import layer_name, module_of

NORMS = (BatchNorm, LayerNorm, RMSNorm, GroupNorm, InstanceNorm)
SPREAD = 0.02
"""Of embeddings, as transformers have it: PyTorch's own 1 is too much where the table is the last layer too."""


@torch.no_grad()
def draw_anew(graph: Graph, seed: int) -> list[str]:
    """All weights of layers, in place, masks kept. Returns the names of what stays, as nobody knows how it began.

    Norms scale by 1, add 0, and have seen nothing. Constants that no layer owns stay, such as embeddings of positions.
    """
    generator = torch.Generator().manual_seed(seed)
    kept, drawn = [], set()
    for node in graph.module.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(graph.module, str(node.target), None), nn.Parameter):
            kept.append(str(node.meta.get("name", node.target)))
        if node.op != "call_module" or node.target in drawn:
            continue
        drawn.add(node.target)
        leaf = module_of(node)
        if isinstance(leaf, NORMS):
            _reset(leaf)
        elif isinstance(leaf, (Linear, Conv, ConvTranspose, Recurrent, Embedding)):
            _draw(leaf, generator)
        elif next(leaf.parameters(), None) is not None:
            kept.append(layer_name(node))
    return kept


def _draw(leaf: Linear | Conv | ConvTranspose | Recurrent | Embedding, generator: torch.Generator) -> None:
    if isinstance(leaf, Embedding):
        _fill(leaf, "weight", SPREAD * torch.randn(leaf.weight.shape, generator=generator))
        return
    bound = 1 / math.sqrt(leaf.hidden if isinstance(leaf, Recurrent) else math.prod(leaf.weight.shape[1:]))
    for name in ("weight", "weight_ih", "weight_hh", "bias", "peepholes"):
        value = getattr(leaf, name, None)
        if isinstance(value, Tensor):
            _fill(leaf, name, bound * (2 * torch.rand(value.shape, generator=generator) - 1))


def _reset(leaf: nn.Module) -> None:
    for name, number in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        value = getattr(leaf, name, None)
        if isinstance(value, Tensor):
            _fill(leaf, name, torch.full(value.shape, number))


def _fill(leaf: nn.Module, name: str, values: Tensor) -> None:
    tensor = leaf.get_buffer(name) if name.startswith("running") else raw_parameter(leaf, name)
    tensor.copy_(values)
