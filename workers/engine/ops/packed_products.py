"""Matrix products with weights stored in packed integers of 8, 4 or 2 bits: read as the float layer that they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.engine.encodings import IN_BYTES
from workers.engine.ops.base import Op, register
from workers.engine.ops.linear import Projection

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.onnx_node import OnnxNode

NOTE = "the file stores weights as packed integers; they were read as floats"


def unpacked(stored: Tensor, bits: int) -> Tensor:
    """Integers (…, count × 8 / bits) of bytes (…, count), the lowest bits first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.int32)
    return (stored.to(torch.int32).unsqueeze(-1) >> shifts & (2**bits - 1)).flatten(-2)


@register
class MatMulNBits(Op):
    """ONNX Runtime's own op. The engine writes it through the encoding of a weight."""

    name = "MatMulNBits"
    domain = "com.microsoft"

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        bits, block = int(node.attribute("bits", 4)), int(node.attribute("block_size", 0))
        inside, out = int(node.attribute("K", 0)), int(node.attribute("N", 0))
        blocks = -(-inside // block) if block > 0 else 0
        if bits not in (2, 4, 8) or min(inside, out, blocks) < 1:
            raise node.invalid(f"{bits} bits in blocks of {block} for a weight of {out} × {inside}")
        if node.optional(4) is not None or not node.stores(1, 2, 3, 5):
            raise node.refuse("its blocks are in another order, or its weights are computed")
        stored, scale, zero_point = node.weight(1), node.weight(2).reshape(out, blocks), node.optional_weight(3)
        values = unpacked(stored.reshape(out, blocks, -1), bits)
        if values.shape[-1] != block:
            raise node.invalid(f"weights of shape {list(stored.shape)} are not blocks of {block}")
        zero: Tensor | int = 2 ** (bits - 1)
        if zero_point is not None:
            rows = zero_point.reshape(out, -1)
            zero = rows if zero_point.is_floating_point() else unpacked(rows, bits)[:, :blocks]
            zero = zero.unsqueeze(-1)
        weight = ((values - zero) * scale.unsqueeze(-1)).to(scale.dtype).flatten(1)[:, :inside].contiguous()
        graph.keep(weight)
        if int(node.attribute("accuracy_level", 0)) == IN_BYTES:
            graph.forms.blocks(weight, scale.unsqueeze(-1), torch.as_tensor(zero), block)
        bias = node.optional_weight(5)
        if NOTE not in graph.notes:
            graph.notes.append(NOTE)
        layer = Projection(graph.parameter(weight), None if bias is None else graph.parameter(bias))
        return graph.module(node.layer(1), layer, node.input(0))
