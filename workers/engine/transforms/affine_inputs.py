"""x × factor + offset behind an input: a leaf while steps work, in the end part of the layer that reads it.

Only in the end: a training would tear weights apart that are scaled to bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from workers.engine.constraints import constraints_of, raw_parameter, tied_parameters
from workers.engine.graph import Graph
from workers.engine.ops.axis_rules import elementwise
from workers.engine.ops.base import Op, register, source_of
from workers.engine.ops.convolution import Conv
from workers.engine.ops.linear import Linear
from workers.engine.ops.shapes import flatten, reshape, shape, squeeze, transpose, unsqueeze
from workers.engine.quantization.byte_inputs import read_as_grid
from workers.engine.quantization.nodes import calls_of, module_of
from workers.engine.transforms.adding import add_leaf

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder

VIEWS = (flatten, reshape, squeeze, transpose, unsqueeze)
"""Looked through where one number holds for all channels."""


class Affine(nn.Module):
    """`factor` and `offset`: of the input's type and number of dimensions, one element or one a channel."""

    factor: Tensor
    offset: Tensor

    def __init__(self, factor: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.offset


@register
class AffineOp(Op):
    name = "Affine"
    domain = "modelpress"
    modules = (Affine,)
    axes = elementwise

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        leaf, value = module_of(node), node.args[0]
        if bool((leaf.factor != 1).any()):
            value = onnx.node("Mul", [value, onnx.initializer(f"{node.name}_factor", leaf.factor)], node.name)
        onnx.emit(node, "Add", [value, onnx.initializer(f"{node.name}_offset", leaf.offset)])


def insert_affine(graph: Graph, node: fx.Node, factor: Tensor, offset: Tensor) -> None:
    """Everything that read the node reads it × factor + offset, in place."""
    path = add_leaf(graph.module, "affine", Affine(factor, offset))
    with graph.module.graph.inserting_after(node):
        made = graph.module.graph.call_module(path, (node,))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    graph.module.recompile()


def fold_affine(graph: Graph) -> None:
    """Let the layers that read them do what such leaves do, as far as that is exact, in place."""
    for node in list(graph.module.graph.nodes):
        leaf = module_of(node) if node.op == "call_module" else None
        if not isinstance(leaf, Affine) or read_as_grid(graph, node, leaf.factor, leaf.offset):
            continue
        nothing = torch.zeros_like(leaf.offset)
        if _into_reader(graph, node, leaf.factor, leaf.offset):
            node.replace_all_uses_with(source_of(node))
            graph.module.graph.erase_node(node)
        elif _into_reader(graph, node, leaf.factor, nothing):  # the zeros around an image stay zeros: the sum stays
            leaf.offset.div_(leaf.factor)
            leaf.factor.fill_(1)
    graph.module.delete_all_unused_submodules()
    graph.module.recompile()


def _into_reader(graph: Graph, node: fx.Node, factor: Tensor, offset: Tensor) -> bool:
    """Scale the weights and move the bias of the one layer that reads a value; whether one can where that is exact.

    Channels are dimension 1 of what a convolution reads, the last of what a linear layer does.
    """
    reader = _reader(node, uniform=factor.numel() == offset.numel() == 1)
    if reader is None or not _free(graph, reader):
        return False
    layer, moves = module_of(reader), bool((offset != 0).any())
    if moves and isinstance(layer, Conv) and (layer.auto_pad != "NOTSET" or any(layer.pads)):
        return False
    gain, shift = _columns(layer, factor), _columns(layer, offset)
    if gain is None or shift is None:
        return False
    weight = layer.weight.detach().double()
    groups = layer.groups if isinstance(layer, Conv) else 1
    # Rows of one group read the channels of that group: (groups, out, in, …) against (groups, 1, in, …).
    grouped = weight.unflatten(0, (groups, -1))
    laid_out = (groups, 1, -1, *[1] * (weight.dim() - 2))
    gains, shifts = gain.double().reshape(laid_out), shift.double().reshape(laid_out)
    layer.weight = nn.Parameter((grouped * gains).flatten(0, 1).to(layer.weight.dtype))
    if moves:
        moved = (grouped * shifts).flatten(2).sum(2).flatten()
        bias = moved if layer.bias is None else moved + layer.bias.detach().double()
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
    return True


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
