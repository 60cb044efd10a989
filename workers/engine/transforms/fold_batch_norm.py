"""Folds a batch normalization into the layer before it: one layer, the same outputs in eval mode."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from workers.engine.constraints import Mask, constraints_of, raw_parameter, tied_parameters
from workers.engine.graph import Graph
from workers.engine.ops.base import leaf_of
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.ops.linear import Linear
from workers.engine.ops.normalization import BatchNorm
from workers.engine.transforms.raising import BATCH_NORMS, raise_patterns


def fold_batch_norm(graph: Graph) -> int:
    """Fold in place wherever nothing else uses the layer's output. Returns how many batch norms went.

    A factor and a summand for each channel are one too.

    Masks stay true when a weight is scaled; under any other constraint, or under a mask over a weight that another
    layer uses too, a layer keeps its batch norm.
    """
    raise_patterns(graph, BATCH_NORMS)
    module = graph.module
    calls: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    folded, tied = 0, tied_parameters(module)
    for node in list(module.graph.nodes):
        layer = _before(node, module, calls, tied)
        if layer is not None:
            _scale(layer, leaf_of(node, BatchNorm))
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
            folded += 1
    if folded:
        module.delete_all_unused_submodules()
        module.recompile()
    return folded


def _before(
    node: fx.Node, module: fx.GraphModule, calls: dict[str, int], tied: frozenset[nn.Parameter]
) -> Conv | ConvTranspose | Linear | None:
    """The layer that a batch norm can be folded into, or None."""
    if node.op != "call_module" or not isinstance(module.get_submodule(str(node.target)), BatchNorm):
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
        return None
    layer = module.get_submodule(str(source.target))
    if not isinstance(layer, (Conv, ConvTranspose, Linear)) or calls[str(source.target)] > 1:
        return None
    masked_only = all(isinstance(constraint, Mask) for constraint in constraints_of(layer, "weight"))
    shared = bool(constraints_of(layer, "weight")) and raw_parameter(layer, "weight") in tied
    constrained = not masked_only or shared or bool(constraints_of(layer, "bias"))
    over_channels = not isinstance(layer, Linear) or type(layer) is Linear
    return layer if over_channels and not constrained else None


def _scale(layer: Conv | ConvTranspose | Linear, norm: BatchNorm) -> None:
    mean, variance = norm.statistics
    with torch.no_grad():
        gain: Tensor = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
        shift = norm.bias.double() - mean.double() * gain
        weight = raw_parameter(layer, "weight")
        dtype = weight.dtype
        if isinstance(layer, ConvTranspose):
            grouped = weight.unflatten(0, (layer.groups, -1)).double()
            gains = gain.reshape(layer.groups, 1, -1, *[1] * layer.rank)
            scaled = (grouped * gains).flatten(0, 1)
        else:
            scaled = weight.double() * gain.reshape(-1, *[1] * (weight.dim() - 1))
        if layer.bias is not None:
            shift = shift + layer.bias.double() * gain
        if constraints_of(layer, "weight"):
            weight.data = scaled.to(dtype)
        else:
            layer.weight = nn.Parameter(scaled.to(dtype))  # a new one: the old may be shared with another layer
        layer.bias = nn.Parameter(shift.to(dtype))
