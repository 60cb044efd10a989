"""x × factor + offset in front of a graph: inside the layer that reads it where that is exact, else as two nodes."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from workers.engine.constraints import constraints_of, raw_parameter, tied_parameters
from workers.engine.graph import Graph
from workers.engine.ops.convolution import Conv
from workers.engine.ops.linear import Linear
from workers.engine.ops.shapes import flatten, reshape, shape, squeeze, transpose, unsqueeze
from workers.engine.quantization.nodes import calls_of, module_of
from workers.engine.transforms.adding import add_constant

VIEWS = (flatten, reshape, squeeze, transpose, unsqueeze)
"""Looked through where one number holds for all channels."""


def fold_affine(graph: Graph, node: fx.Node, factor: Tensor, offset: Tensor) -> str | None:
    """Scale weights and move the bias of the one layer that reads a value, in place; its name, None where none can.

    `factor` and `offset` have the value's dimensions, and one element or one a channel: dimension 1 of what a
    convolution reads, the last of what a linear layer does.
    """
    reader = _reader(node, uniform=factor.numel() == offset.numel() == 1)
    if reader is None or not _free(graph, reader):
        return None
    layer = module_of(reader)
    if isinstance(layer, Conv) and (layer.auto_pad != "NOTSET" or any(layer.pads)) and bool((offset != 0).any()):
        return None  # the zeros around an image would become other numbers
    gain, shift = _columns(layer, factor), _columns(layer, offset)
    if gain is None or shift is None:
        return None
    weight = layer.weight.detach().double()
    groups = layer.groups if isinstance(layer, Conv) else 1
    # Rows of one group read the channels of that group: (groups, out, in, …) against (groups, 1, in, …).
    grouped = weight.unflatten(0, (groups, -1))
    shape = (groups, 1, -1, *[1] * (weight.dim() - 2))
    gains, shifts = gain.double().reshape(shape), shift.double().reshape(shape)
    moved = (grouped * shifts).flatten(2).sum(2).flatten()
    layer.weight = nn.Parameter((grouped * gains).flatten(0, 1).to(layer.weight.dtype))
    if bool((offset != 0).any()):
        bias = moved if layer.bias is None else moved + layer.bias.detach().double()
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
    return str(reader.meta.get("layer", reader.name))


def insert_affine(graph: Graph, node: fx.Node, factor: Tensor, offset: Tensor) -> None:
    """The same as a product and a sum behind the node, in place; what changes nothing is left out."""
    nodes, value = graph.module.graph, node
    steps = ((torch.mul, "input_factor", factor, 1.0), (torch.add, "input_offset", offset, 0.0))
    for function, stem, tensor, nothing in steps:
        if bool((tensor == nothing).all()):
            continue
        constant = add_constant(graph.module, stem, tensor)
        with nodes.inserting_after(value):
            made = nodes.call_function(function, (value, constant))
        for reader in [user for user in value.users if user is not made]:
            reader.replace_input_with(value, made)
        value = made
    graph.module.recompile()


def _reader(node: fx.Node, *, uniform: bool) -> fx.Node | None:
    """The one layer that reads a value."""
    while True:
        readers = [user for user in node.users if user.target is not shape]
        if len(readers) != 1:
            return None
        node = readers[0]
        if node.op == "call_module" and isinstance(module_of(node), (Conv, Linear)):
            return node
        if not uniform or node.target not in VIEWS:
            return None


def _free(graph: Graph, reader: fx.Node) -> bool:
    """Whether nothing else depends on the layer's weights, nor on the numbers that they are."""
    layer = module_of(reader)
    tied = tied_parameters(graph.module)
    held = [name for name in ("weight", "bias") if getattr(layer, name) is not None]
    return len(calls_of(reader)) == 1 and not any(
        constraints_of(layer, name) or raw_parameter(layer, name) in tied for name in held
    )


def _columns(layer: Conv | Linear, numbers: Tensor) -> Tensor | None:
    """One number for each channel that the layer reads; None where they lie along another axis."""
    channels = layer.weight.shape[1] * (layer.groups if isinstance(layer, Conv) else 1)
    if numbers.numel() == 1:
        return numbers.reshape(1).expand(channels)
    along = numbers.shape[1 if isinstance(layer, Conv) else -1]
    return numbers.flatten() if along == numbers.numel() == channels else None
