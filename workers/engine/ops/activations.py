"""Functions of one tensor, element by element, and softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from workers.engine.ops.base import Quantization
from workers.engine.ops.plain import plain

UNARY = Quantization()
FUSED = Quantization(fused=True)


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
    return torch.clamp(x, low, high)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


plain("Relu", torch.relu, quantization=FUSED)
plain("LeakyRelu", leaky_relu, quantization=UNARY)
plain("Elu", elu)
plain("Celu", celu)
plain("Selu", selu)
plain("ThresholdedRelu", thresholded_relu)
plain("PRelu", prelu)
plain("Sigmoid", torch.sigmoid, quantization=UNARY)
plain("HardSigmoid", hard_sigmoid)
plain("HardSwish", hard_swish, opset=14)
plain("Tanh", torch.tanh)
plain("Gelu", gelu, opset=20)
plain("Mish", mish, opset=18)
plain("Softplus", softplus)
plain("Softsign", softsign)
plain("Shrink", shrink)
plain("Clip", clip, quantization=FUSED, literals=frozenset({1, 2}), attribute_before={1: ("min", 11), 2: ("max", 11)})
plain("Softmax", softmax)
plain("LogSoftmax", log_softmax)
plain("Hardmax", hardmax)

for name, function in {
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
}.items():
    plain(name, function)
