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


def dequantize(values: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    if scale.numel() > 1:
        shape = [-1 if dim == axis % values.dim() else 1 for dim in range(values.dim())]
        scale = scale.reshape(shape)
        zero_point = None if zero_point is None else zero_point.reshape(shape)
    integers = values.to(torch.int32) - (0 if zero_point is None else zero_point.to(torch.int32))
    return integers.to(scale.dtype) * scale


@register
class DequantizeLinear(Op):
    name = "DequantizeLinear"

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        values, scale, zero_point = node.input(0), node.input(1), node.optional(2)
        if isinstance(values, fx.Node) or isinstance(scale, fx.Node) or isinstance(zero_point, fx.Node):
            raise node.refuse(ADVICE)
        if node.attribute("block_size", 0) or (scale.numel() > 1 and scale.dim() != 1):
            raise node.refuse("weights quantized in blocks are not supported; send the float model")
        if NOTE not in graph.notes:
            graph.notes.append(NOTE)
        return graph.name(dequantize(values, scale, zero_point, node.attribute("axis", 1)), node.input_names[0])


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
