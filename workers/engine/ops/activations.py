"""Functions of one tensor, element by element, and the functions behind softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx

from workers.engine.ops.aten import of_dtype, reads_aten, reads_aten_as
from workers.engine.ops.axis_rules import elementwise
from workers.engine.ops.base import Quantization, register
from workers.engine.ops.plain import Composite, Plain, plain

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.writers.onnx import OnnxBuilder

UNARY = Quantization()
FUSED = Quantization(fused=True)
REREAD = Quantization(output=False, rereads=True)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def mish(x: Tensor) -> Tensor:
    return F.mish(x)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def swiglu(gate: Tensor, x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Shazeer, arXiv:2002.05202."""
    return swish(gate, alpha=alpha) * x


def softplus(x: Tensor) -> Tensor:
    return F.softplus(x)


def softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


def hard_swish(x: Tensor) -> Tensor:
    return F.hardswish(x)


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def clip(x: Tensor, low: Tensor | float | None = None, high: Tensor | float | None = None) -> Tensor:
    if low is None and high is None:
        return x
    bounds: tuple[Any, Any] = (low, high)
    return torch.clamp(x, *bounds)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


plain("Relu", torch.relu, axes=elementwise, quantization=FUSED)
plain("LeakyRelu", leaky_relu, axes=elementwise, quantization=UNARY)
plain("Elu", elu, axes=elementwise)
plain("Celu", celu, axes=elementwise)
plain("Selu", selu, axes=elementwise)
plain("ThresholdedRelu", thresholded_relu, axes=elementwise)
plain("PRelu", prelu, axes=elementwise)
plain("Sigmoid", torch.sigmoid, axes=elementwise, quantization=UNARY)
plain("HardSigmoid", hard_sigmoid, axes=elementwise, quantization=REREAD)
plain("Tanh", torch.tanh, axes=elementwise)
plain("Softplus", softplus, axes=elementwise)
plain("Softsign", softsign, axes=elementwise)
plain("Shrink", shrink, axes=elementwise)
plain(
    "Clip",
    clip,
    axes=elementwise,
    quantization=FUSED,
    literals=frozenset({1, 2}),
    attribute_before={1: ("min", 11), 2: ("max", 11)},
)


@register
class HardSwish(Composite):
    name = "HardSwish"
    functions = (hard_swish,)
    axes = elementwise
    opset = 14

    def write_parts(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        gate = onnx.node("HardSigmoid", [node.args[0]], f"{node.name}_gate", alpha=1 / 6, beta=0.5)
        onnx.emit(node, "Mul", [node.args[0], gate])


@register
class Gelu(Composite):
    name = "Gelu"
    functions = (gelu,)
    axes = elementwise
    opset = 20

    def write_parts(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        x, name = node.args[0], node.name
        if node.kwargs["approximate"] == "tanh":
            cube = onnx.node("Pow", [x, 3.0], f"{name}_cube")
            bent = onnx.node("Add", [x, onnx.node("Mul", [cube, 0.044715], f"{name}_bend")], f"{name}_bent")
            steep = onnx.node("Mul", [bent, math.sqrt(2 / math.pi)], f"{name}_steep")
            share = onnx.node("Tanh", [steep], f"{name}_tanh")
        else:
            share = onnx.node("Erf", [onnx.node("Div", [x, math.sqrt(2)], f"{name}_scaled")], f"{name}_erf")
        gate = onnx.node("Add", [share, 1.0], f"{name}_gate")
        onnx.emit(node, "Mul", [onnx.node("Mul", [x, gate], f"{name}_gated"), 0.5])


@register
class Swish(Plain):
    """An op since opset 24, and always written in parts: ONNX Runtime has no kernel for it."""

    name = "Swish"
    functions = (swish,)
    axes = elementwise
    taken_apart = True
    opset = 15

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        onnx.emit(node, "Mul", [node.args[0], swish_gate(node, onnx)])


@register
class SwiGLU(Plain):
    """An op since opset 28, written in parts as above."""

    name = "SwiGLU"
    functions = (swiglu,)
    axes = elementwise
    opset = 15

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        gated = onnx.node("Mul", [node.args[0], swish_gate(node, onnx)], f"{node.name}_gated")
        onnx.emit(node, "Mul", [gated, node.args[1]])


def swish_gate(node: fx.Node, onnx: OnnxBuilder) -> str:
    x, alpha = node.args[0], node.kwargs["alpha"]
    if alpha != 1:
        slope = alpha if node.meta.get("raised") else onnx.node("CastLike", [alpha, x], f"{node.name}_slope")
        x = onnx.node("Mul", [x, slope], f"{node.name}_steep")
    return onnx.node("Sigmoid", [x], f"{node.name}_gate")


@register
class Mish(Composite):
    name = "Mish"
    functions = (mish,)
    axes = elementwise
    opset = 18

    def write_parts(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        x = node.args[0]
        gate = onnx.node("Tanh", [onnx.node("Softplus", [x], f"{node.name}_softplus")], f"{node.name}_gate")
        onnx.emit(node, "Mul", [x, gate])


UNARY_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Erf": torch.erf,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
}
for name, function in UNARY_FUNCTIONS.items():
    plain(name, function, axes=elementwise)


ATEN_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": hard_swish,
    "mish": mish,
    "abs": torch.abs,
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "erf": torch.erf,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "selu": selu,
}
for target, function in ATEN_FUNCTIONS.items():
    reads_aten_as(function, f"{target}.default", f"{target}_.default")


@reads_aten("silu.default", "silu_.default")
def read_aten_silu(node: AtenNode, graph: GraphBuilder) -> Value:
    x = node.value("self")
    return graph.call(torch.mul, x, graph.call(torch.sigmoid, x))


@reads_aten("rsqrt.default")
def read_aten_rsqrt(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(torch.reciprocal, graph.call(torch.sqrt, node.value("self")))


@reads_aten("gelu.default")
def read_aten_gelu(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(gelu, node.value("self"), approximate=node.get("approximate", "none"))


@reads_aten("leaky_relu.default", "leaky_relu_.default")
def read_aten_leaky_relu(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(leaky_relu, node.value("self"), alpha=float(node.get("negative_slope", 0.01)))


@reads_aten("elu.default", "elu_.default")
def read_aten_elu(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.get("scale", 1) != 1 or node.get("input_scale", 1) != 1:
        raise node.unsupported("scale is not 1")
    return graph.call(elu, node.value("self"), alpha=float(node.get("alpha", 1.0)))


@reads_aten("hardsigmoid.default", "hardsigmoid_.default")
def read_aten_hard_sigmoid(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(hard_sigmoid, node.value("self"), alpha=1 / 6, beta=0.5)


@reads_aten("hardtanh.default", "hardtanh_.default")
def read_aten_hard_tanh(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(clip, node.value("self"), float(node.get("min_val", -1)), float(node.get("max_val", 1)))


@reads_aten("relu6.default", "relu6_.default")
def read_aten_relu6(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(clip, node.value("self"), 0.0, 6.0)


@reads_aten("celu.default", "celu_.default")
def read_aten_celu(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(celu, node.value("self"), alpha=float(node.get("alpha", 1.0)))


@reads_aten("prelu.default")
def read_aten_prelu(node: AtenNode, graph: GraphBuilder) -> Value:
    """PyTorch's slopes go with the second dimension, ONNX's with the last."""
    slope = node.weight("weight")
    laid_out = slope.reshape(-1, *(1,) * max(0, node.rank("self") - 2))
    return graph.call(prelu, node.value("self"), graph.name(laid_out, f"{node.layer('weight')}.weight"))


@reads_aten("softplus.default")
def read_aten_softplus(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.get("beta", 1) != 1 or node.get("threshold", 20) != 20:
        raise node.unsupported("its beta is not 1 or its threshold not 20")
    return graph.call(softplus, node.value("self"))


@reads_aten("log_sigmoid.default")
def read_aten_log_sigmoid(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(torch.neg, graph.call(softplus, graph.call(torch.neg, node.value("self"))))


@reads_aten("hardshrink.default", "softshrink.default")
def read_aten_shrink(node: AtenNode, graph: GraphBuilder) -> Value:
    width = float(node.get("lambd", 0.5))
    return graph.call(shrink, node.value("self"), bias=width if node.target.startswith("soft") else 0.0, lambd=width)


@reads_aten("clamp.default", "clamp_.default", "clip.default", "clamp_min.default", "clamp_max.default")
def read_aten_clamp(node: AtenNode, graph: GraphBuilder) -> Value:
    """Value and bounds in the dtype of the result: integers stay such between integers only."""
    dtype = (node.output_dtypes or (None,))[0] or torch.float32

    def bound(value: Any) -> Value | float | None:
        if value is None or (dtype.is_floating_point and isinstance(value, (int, float))):
            return None if value is None else float(value)
        return of_dtype(node.plain(value), dtype, graph)

    x = of_dtype(node.value("self"), dtype, graph)
    return graph.call(clip, x, bound(node.get("min")), bound(node.get("max")))


@reads_aten("softmax.int", "_softmax.default")
def read_aten_softmax(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(softmax, node.value("self"), axis=int(node.get("dim")))


@reads_aten("log_softmax.int", "_log_softmax.default")
def read_aten_log_softmax(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(log_softmax, node.value("self"), axis=int(node.get("dim")))
