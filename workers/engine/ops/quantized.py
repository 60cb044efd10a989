"""Models that are quantized already: integers and their scales, as they stand in a file.

Stored integers become floats that stay on their grid; a pair of `QuantizeLinear` and `DequantizeLinear` becomes one
leaf, as the engine's own steps make it. What computes in integers stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from onnx import TensorProto
from torch import Tensor, fx

from workers.engine.dtypes import NARROW, ONNX_OF_TORCH, TORCH_OF_ONNX, WORD_OF_ONNX
from workers.engine.ops.base import MOST, Op, register, source_of
from workers.engine.ops.casting import cast
from workers.engine.ops.plain import attributes_of

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.quantization.fake_quantize import FakeQuantize
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.writers.onnx import OnnxBuilder

HELD = frozenset(WORD_OF_ONNX[number] for number in NARROW)
IN_INTEGERS = "computes in integers"
KEPT = "the file stores weights as integers, and they stay so"
STORED = (torch.int8, torch.uint8, torch.int32)
WIDENED = "the file stores weights as integers in a way that is not kept: they were read as floats"


def dequantize(
    values: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0
) -> Tensor:
    """One scale for all, one for each place along the axis, or one for each block of places there."""
    wide = values.to(scale.dtype if values.is_floating_point() else torch.int32)
    if zero_point is not None:
        wide = wide - _along(zero_point, values, axis, block_size).to(wide.dtype)
    return wide.to(scale.dtype) * _along(scale, values, axis, block_size)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """In the type of the zero point, or in `output_dtype`, else in 8 bits without sign; halves go to even numbers."""
    kind = TORCH_OF_ONNX[output_dtype or TensorProto.UINT8] if zero_point is None else zero_point.dtype
    if kind.is_floating_point:
        return cast(x / _along(scale, x, axis, block_size), to=ONNX_OF_TORCH[kind])
    bounds = torch.iinfo(kind)
    wide = (x / _along(scale, x, axis, block_size)).round()
    if zero_point is not None:
        wide = wide + _along(zero_point, x, axis, block_size).to(wide.dtype)
    return wide.clamp(bounds.min, bounds.max).to(kind)


def _along(numbers: Tensor, values: Tensor, axis: int, block: int) -> Tensor:
    if block:
        return numbers.repeat_interleave(block, axis).narrow(axis, 0, values.shape[axis])
    if numbers.numel() == 1:
        return numbers.reshape(())
    return numbers.reshape([-1 if dim == axis % values.dim() else 1 for dim in range(values.dim())])


class Scaled(Op):
    """Both directions have the same inputs and attributes."""

    folds = MOST

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        attributes = attributes_of(node)
        given = {name: attributes[name] for name in ("block_size", "output_dtype") if attributes.get(name)}
        onnx.emit(node, self.name, node.args, axis=attributes["axis"], **given)

    @staticmethod
    def places(node: OnnxNode) -> dict[str, int]:
        return {"axis": node.attribute("axis", 1), "block_size": node.attribute("block_size", 0)}


@register
class QuantizeLinear(Scaled):
    name = "QuantizeLinear"
    functions = (quantize,)

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        kind, zero_point = node.attribute("output_dtype", 0), node.optional(2)
        unknown = node.attributes.keys() - {"axis", "block_size", "saturate", "output_dtype"}
        if unknown or not node.attribute("saturate", 1):
            raise node.refuse(f"attribute {min(unknown, default='saturate')!r} is not supported")
        word = WORD_OF_ONNX.get(kind) if zero_point is None else graph.word_of(zero_point)
        if word in HELD:
            raise node.refuse("makes values of a type that is not computed with here")
        return graph.call(quantize, node.input(0), node.input(1), zero_point, **self.places(node), output_dtype=kind)


@register
class DequantizeLinear(Scaled):
    name = "DequantizeLinear"
    functions = (dequantize,)

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        values, scale, zero_point = node.input(0), node.input(1), node.optional(2)
        if node.attribute("output_dtype", 0):
            raise node.refuse("attribute 'output_dtype' is not supported")
        if isinstance(values, fx.Node):
            pair = _pair(values, scale, zero_point, graph)
            if pair is not None:
                return graph.module(node.name or node.outputs[0], pair, source_of(values))
        result = graph.call(dequantize, values, scale, zero_point, **self.places(node))
        if isinstance(result, Tensor) and isinstance(values, Tensor) and isinstance(scale, Tensor):
            graph.name(result, node.input_names[0])
            kept = not node.attribute("block_size", 0) and values.dtype in STORED
            if kept:
                axis, zero = node.attribute("axis", 1), zero_point if isinstance(zero_point, Tensor) else None
                if zero is None and values.dtype != torch.int32:
                    zero = torch.zeros_like(scale, dtype=values.dtype)
                shifts = None if zero is None or _symmetric(values, zero) else _along(zero, values, axis, 0)
                graph.forms.integers(result, _along(scale, values, axis, 0), shifts)
            note = KEPT if kept else WIDENED
            if note not in graph.notes:
                graph.notes.append(note)
        return result


def _symmetric(values: Tensor, zero_point: Tensor) -> bool:
    """Whether the engine's own grids hold these integers."""
    if values.dtype not in (torch.int8, torch.int32) or bool(zero_point.any()) or not values.numel():
        return False
    return values.dtype == torch.int32 or int(values.min()) >= -torch.iinfo(torch.int8).max


def _pair(quantized: fx.Node, scale: Value, zero_point: Value | None, graph: GraphBuilder) -> FakeQuantize | None:
    """The leaf that rounds to a grid of 8 bits, where the integers come straight from one scale for all."""
    from workers.engine.quantization.fake_quantize import FakeQuantize  # noqa: PLC0415 (it imports the op table)

    if quantized.target is not quantize or quantized.kwargs["block_size"]:
        return None
    _, made_scale, made_zero, *_ = (*quantized.args, None)
    written, read = (_one(value, graph, torch.float32) for value in (made_scale, scale))
    if written is None or read is None:
        return None
    for kind, shift in ((torch.uint8, 0), (torch.int8, 128)):
        zeros = [_one(value, graph, kind) for value in (made_zero, zero_point)]
        if None not in zeros and zeros[0] == zeros[1]:
            return FakeQuantize(written, int(zeros[0] or 0) + shift, read / written)
    return FakeQuantize(written, 0, read / written) if made_zero is None and zero_point is None else None


def _one(value: Any, graph: GraphBuilder, kind: torch.dtype) -> float | None:
    """The number that a constant of one element and this type is."""
    known = graph.known(value)
    if not isinstance(known, Tensor) or known.numel() != 1 or known.dtype != kind:
        return None
    return float(known)


class Refused(Op):
    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:  # noqa: ARG002 (of the base)
        raise node.refuse(IN_INTEGERS)


for name in ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"):
    register(type(name, (Refused,), {"name": name}))
