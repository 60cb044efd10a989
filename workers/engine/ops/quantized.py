"""What is read of models that are quantized already: stored integers become floats again, all else is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from workers.engine.ops.base import Op, register

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.onnx_node import OnnxNode

ADVICE = "the model is quantized already; send the float model it was made from"
NOTE = "The file stores weights as integers; they were read as floats."


def dequantize(values: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block: int = 0) -> Tensor:
    """One scale for all, one for each place along the axis, or one for each `block` of places there."""
    wide = values.to(scale.dtype if values.is_floating_point() else torch.int32)
    if zero_point is not None:
        wide = wide - _along(zero_point, values, axis, block).to(wide.dtype)
    return wide.to(scale.dtype) * _along(scale, values, axis, block)


def _along(numbers: Tensor, values: Tensor, axis: int, block: int) -> Tensor:
    if block:
        return numbers.repeat_interleave(block, axis).narrow(axis, 0, values.shape[axis])
    if numbers.numel() == 1:
        return numbers.reshape(())
    return numbers.reshape([-1 if dim == axis % values.dim() else 1 for dim in range(values.dim())])


@register
class DequantizeLinear(Op):
    name = "DequantizeLinear"

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        values, scale, zero_point = node.input(0), node.input(1), node.optional(2)
        if isinstance(values, fx.Node) or isinstance(scale, fx.Node) or isinstance(zero_point, fx.Node):
            raise node.refuse(ADVICE)
        if NOTE not in graph.notes:
            graph.notes.append(NOTE)
        floats = dequantize(values, scale, zero_point, node.attribute("axis", 1), node.attribute("block_size", 0))
        return graph.name(floats, node.input_names[0])


class Refused(Op):
    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:  # noqa: ARG002 (of the base)
        raise node.refuse(ADVICE)


for name in (
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
):
    register(type(name, (Refused,), {"name": name}))
