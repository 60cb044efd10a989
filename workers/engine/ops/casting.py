"""Changes of element type."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from onnx import TensorProto
from torch import Tensor

from workers.engine.dtypes import NARROW, ONNX_OF_TORCH, ONNX_OF_WORD, TORCH_OF_ONNX
from workers.engine.ops.aten import reads_aten
from workers.engine.ops.axis_rules import like_first
from workers.engine.ops.base import ANY, register
from workers.engine.ops.plain import Plain, plain

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """`saturate` and `round_mode` matter for 8-bit floats only."""
    dtype = TORCH_OF_ONNX[to]
    if to == TensorProto.FLOAT4E2M1:
        return _to_float4(x.float()).to(dtype)
    if to in NARROW:
        return _narrowed(x, dtype, NARROW[to])
    if dtype is torch.float8_e8m0fnu:
        return _power_of_two(x, round_mode)
    return _to_float8(x, dtype, bool(saturate)) if dtype in FLOAT8 else x.to(dtype)


def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1) -> Tensor:
    return cast(x, to=ONNX_OF_TORCH[like.dtype], saturate=saturate)


FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)


def _to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """Larger values become the largest, or without `saturate` infinity where the type has it, else no number."""
    largest = torch.finfo(dtype).max
    bounded = x.clamp(-largest, largest).to(dtype)
    if saturate:
        return bounded
    step = largest - float(torch.tensor(largest * 0.99, dtype=torch.float32).to(dtype))
    beyond = x.abs() >= largest + (step or largest / 16) / 2
    wide = bounded.float()
    outside = x.sign().float() * math.inf if dtype is torch.float8_e5m2 else torch.full_like(wide, math.nan)
    return torch.where(beyond, outside, wide).to(dtype)


def _power_of_two(x: Tensor, round_mode: str) -> Tensor:
    """The power of two next to each magnitude: above, below, or the nearest; the smallest for nothing."""
    share, exponent = torch.frexp(x.float().abs().clamp(min=2.0**-127))
    above = {"up": share > 0.5, "down": torch.zeros_like(share, dtype=torch.bool), "nearest": share >= 0.75}[round_mode]
    return torch.ldexp(torch.ones_like(share), exponent - 1 + above.int()).to(torch.float8_e8m0fnu)


def _to_float4(x: Tensor) -> Tensor:
    """One bit of mantissa, halves to even; larger ones become the largest, 6, and what is no number 0."""
    size = x.nan_to_num(0).abs().clamp(max=6)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((size / step).round() * step, x)


def _narrowed(x: Tensor, dtype: torch.dtype, bits: int) -> Tensor:
    """The lowest bits of the integer, as numpy has it."""
    low = 0 if dtype is torch.uint8 else -(1 << bits - 1)
    return ((x.to(torch.int64) - low) % (1 << bits) + low).to(dtype)


def bit_cast(x: Tensor, *, to: int) -> Tensor:
    return x.view(TORCH_OF_ONNX[to])


plain("BitCast", bit_cast, opset=26)


@register
class Cast(Plain):
    name = "Cast"
    functions = (cast,)
    axes = like_first
    folds = ANY
    attribute_since: ClassVar[dict[str, int]] = {"saturate": 19, "round_mode": 24}
    words = frozenset({"up", "down", "nearest"})

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        value, to = node.input(0), node.attribute("to")
        if to not in TORCH_OF_ONNX:
            raise node.refuse(f"type number {to} is not supported")
        return graph.call(cast, value, **self.read_attributes(node, cast))


@register
class CastLike(Plain):
    """Written as the cast that it is, where the type of the other is known."""

    name = "CastLike"
    functions = (cast_like,)
    axes = like_first
    attribute_since: ClassVar[dict[str, int]] = {"saturate": 19}
    opset = 15

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        word = graph.word_of(node.input(1))
        if word is None:
            return super().read(node, graph)
        saturate = node.attribute("saturate", 1)
        return graph.call(cast, node.input(0), to=ONNX_OF_WORD[word], saturate=saturate, round_mode="up")


@reads_aten("to.dtype", "to.dtype_layout", "to.device", "_to_copy.default")
def read_aten_cast(node: AtenNode, graph: GraphBuilder) -> Value:
    dtype = node.get("dtype")
    if dtype is None or dtype == node.dtype:
        return node.value("self")
    return graph.call(cast, node.value("self"), to=ONNX_OF_TORCH[dtype], saturate=1)


@reads_aten("to.other", "type_as.default")
def read_aten_cast_like(node: AtenNode, graph: GraphBuilder) -> Value:
    dtype = node.dtypes["other"]
    if dtype is None or dtype == node.dtype:
        return node.value("self")
    return graph.call(cast, node.value("self"), to=ONNX_OF_TORCH[dtype], saturate=1)
