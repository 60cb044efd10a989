"""Arithmetic, comparisons and logic, element by element, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workers.engine.ops.aten import operands_of, reads_aten, reads_aten_as
from workers.engine.ops.axis_rules import elementwise
from workers.engine.ops.base import Quantization
from workers.engine.ops.plain import plain

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode

BINARY = Quantization(inputs=(0, 1))


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base, whatever the exponent's."""
    if base.dtype == exponent.dtype:
        return torch.pow(base, exponent)
    return torch.pow(base.to(torch.promote_types(base.dtype, exponent.dtype)), exponent).to(base.dtype)


def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The sign is that of the divisor, or with `fmod` that of the dividend."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def maximum(*tensors: Tensor) -> Tensor:
    return reduce(torch.maximum, tensors)


def minimum(*tensors: Tensor) -> Tensor:
    return reduce(torch.minimum, tensors)


def total(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors)


def mean(*tensors: Tensor) -> Tensor:
    return total(*tensors) / len(tensors)


def bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    return torch.bitwise_left_shift(a, b) if direction == "LEFT" else torch.bitwise_right_shift(a, b)


def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    negative = torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)
    return negative | torch.isposinf(x) if detect_positive else negative


plain("Add", torch.add, axes=elementwise, quantization=BINARY)
plain("Sub", torch.sub, axes=elementwise)
plain("Mul", torch.mul, axes=elementwise, quantization=BINARY)
plain("Div", divide, axes=elementwise)
plain("Pow", power, axes=elementwise)
plain("Mod", modulo, axes=elementwise)
plain("Max", maximum, axes=elementwise)
plain("Min", minimum, axes=elementwise)
plain("Sum", total, axes=elementwise)
plain("Mean", mean, axes=elementwise)
plain("Equal", torch.eq, axes=elementwise)
plain("Less", torch.lt, axes=elementwise)
plain("LessOrEqual", torch.le, axes=elementwise)
plain("Greater", torch.gt, axes=elementwise)
plain("GreaterOrEqual", torch.ge, axes=elementwise)
plain("And", torch.logical_and, axes=elementwise)
plain("Or", torch.logical_or, axes=elementwise)
plain("Xor", torch.logical_xor, axes=elementwise)
plain("Not", torch.logical_not, axes=elementwise)
plain("BitwiseAnd", torch.bitwise_and, axes=elementwise, opset=18)
plain("BitwiseOr", torch.bitwise_or, axes=elementwise, opset=18)
plain("BitwiseXor", torch.bitwise_xor, axes=elementwise, opset=18)
plain("BitwiseNot", torch.bitwise_not, axes=elementwise, opset=18)
plain("BitShift", bit_shift, axes=elementwise)
plain("Where", torch.where, axes=elementwise)
plain("IsNaN", torch.isnan, axes=elementwise)
plain("IsInf", is_infinite, axes=elementwise)


ATEN_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "eq": torch.eq,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
}
for target, function in ATEN_FUNCTIONS.items():
    reads_aten_as(function, f"{target}.Tensor", f"{target}.Scalar", f"{target}_.Tensor")
reads_aten_as(divide, "div.Tensor", "div_.Tensor", "div.Scalar")
reads_aten_as(power, "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
reads_aten_as(maximum, "maximum.default", "max.other", "fmax.default")
reads_aten_as(minimum, "minimum.default", "min.other", "fmin.default")
reads_aten_as(torch.logical_not, "logical_not.default")
reads_aten_as(torch.logical_and, "logical_and.default")
reads_aten_as(torch.logical_or, "logical_or.default")
reads_aten_as(torch.logical_xor, "logical_xor.default")


@reads_aten("rsub.Scalar")
def read_aten_reversed_sub(node: AtenNode, graph: GraphBuilder) -> Value:
    x, other = operands_of(node, graph, [node.get("self"), node.get("other")])
    return graph.call(torch.sub, other, x)


@reads_aten("ne.Scalar", "ne.Tensor")
def read_aten_unequal(node: AtenNode, graph: GraphBuilder) -> Value:
    operands = operands_of(node, graph, [node.get("self"), node.get("other")])
    return graph.call(torch.logical_not, graph.call(torch.eq, *operands))


@reads_aten("square.default")
def read_aten_square(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(torch.mul, node.value("self"), node.value("self"))


@reads_aten("addcmul.default")
def read_aten_addcmul(node: AtenNode, graph: GraphBuilder) -> Value:
    product = graph.call(torch.mul, node.value("tensor1"), node.value("tensor2"))
    x, factor = operands_of(node, graph, [node.get("self"), node.get("value", 1)])
    return graph.call(torch.add, x, graph.call(torch.mul, product, factor))


@reads_aten("masked_fill.Scalar", "masked_fill.Tensor", "masked_fill_.Scalar")
def read_aten_masked_fill(node: AtenNode, graph: GraphBuilder) -> Value:
    x, value = operands_of(node, graph, [node.get("self"), node.get("value")])
    return graph.call(torch.where, node.value("mask"), value, x)


@reads_aten("bitwise_not.default")
def read_aten_not(node: AtenNode, graph: GraphBuilder) -> Value:
    inverse = torch.logical_not if node.dtype is torch.bool else torch.bitwise_not
    return graph.call(inverse, node.value("self"))


LOGIC: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "and": (torch.logical_and, torch.bitwise_and),
    "or": (torch.logical_or, torch.bitwise_or),
    "xor": (torch.logical_xor, torch.bitwise_xor),
}


@reads_aten(
    *(f"bitwise_{name}.Tensor" for name in LOGIC),
    *(f"bitwise_{name}.Scalar" for name in LOGIC),
    *(f"__{name}__.Tensor" for name in LOGIC),
    *(f"__{name}__.Scalar" for name in LOGIC),
)
def read_aten_logic(node: AtenNode, graph: GraphBuilder) -> Value:
    """One word for two things: booleans are joined, and bits of integers."""
    of_booleans, of_bits = LOGIC[node.target.split(".")[0].strip("_").removeprefix("bitwise_")]
    operands = operands_of(node, graph, [node.get("self"), node.get("other")])
    return graph.call(of_booleans if node.dtype is torch.bool else of_bits, *operands)


@reads_aten("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def read_aten_choice(node: AtenNode, graph: GraphBuilder) -> Value:
    chosen = operands_of(node, graph, [node.get("self"), node.get("other")])
    return graph.call(torch.where, node.value("condition"), *chosen)
