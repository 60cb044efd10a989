"""Layers whose activations are quantized at run time, each time with the range that they have then.

They answer as ONNX Runtime's kernels do, so that what is trained and compared is what will run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx, nn

from workers.engine.constraints import constraints_of, raw_parameter
from workers.engine.errors import UnsupportedModelError
from workers.engine.ops.base import Op, register
from workers.engine.ops.linear import Linear
from workers.engine.ops.quantized import IN_INTEGERS
from workers.engine.ops.recurrent import LSTMOp
from workers.engine.ops.recurrent_cells import ACTIVATIONS, LSTM
from workers.engine.quantization.grid import IntegerGrid, grid_of
from workers.engine.quantization.nodes import module_of
from workers.engine.quantization.ranges import LEVELS

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.writers.onnx import OnnxBuilder


def quantized_at_run_time(x: Tensor) -> Tensor:
    """x on 256 levels between its own bounds, zero among them, as `DynamicQuantizeLinear` has it; straight through."""
    low, high = x.detach().amin().clamp_max(0), x.detach().amax().clamp_min(0)
    scale = (high - low) / (LEVELS - 1)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = (-low / scale).round().clamp(0, LEVELS - 1)
    integers = ((x.detach() / scale).round() + zero_point).clamp(0, LEVELS - 1)
    return (integers - zero_point) * scale + (x - x.detach())


class DynamicLinear(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(quantized_at_run_time(x), self.weight, self.bias)


class DynamicLSTM(LSTM):
    """The input is quantized once, the hidden state at every step."""

    @property
    def fused(self) -> bool:
        return False

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, hidden: Tensor | None = None, cell: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        return self.run(quantized_at_run_time(x), lengths, (hidden, cell))

    def cell(
        self, x: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor, ...], direction: int
    ) -> tuple[Tensor, ...]:
        hidden, cell = states
        return super().cell(x, (quantized_at_run_time(hidden), cell), weights, direction)


@register
class DynamicLinearOp(Op):
    """Written as the pattern that ONNX Runtime fuses into one kernel, made of standard ops."""

    name = "DynamicQuantizeMatMul"
    domain = "com.microsoft"
    modules = (DynamicLinear,)
    weights: ClassVar[dict[str, int]] = {"weight": 0}

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        name, layer = onnx.layer(node), onnx.module(node)
        integers, grid = _stored(layer, "weight", name)
        weight = onnx.initializer(f"{name}.weight_quantized", integers.t())
        scale = onnx.initializer(f"{name}.weight_scale", grid.scale.flatten())
        zero_point = onnx.initializer(f"{name}.weight_zero_point", torch.zeros(len(integers), dtype=torch.int8))
        x, x_scale, x_zero_point = onnx.nodes("DynamicQuantizeLinear", (onnx.value(node.args[0]),), f"{name}_in", 3)
        product = onnx.node("MatMulInteger", (x, weight, x_zero_point, zero_point), f"{name}_integers")
        floats = onnx.node("Cast", (product,), f"{name}_float", to=1)
        scales = onnx.node("Mul", (x_scale, scale), f"{name}_scales")
        bias = onnx.weight(node, "bias")
        if bias:
            onnx.emit(node, "Add", (onnx.node("Mul", (floats, scales), f"{name}_product"), bias))
        else:
            onnx.emit(node, "Mul", (floats, scales))

    def macs(self, node: fx.Node) -> int:
        return math.prod(node.meta["shape"]) * int(module_of(node).weight.shape[1])


@register
class DynamicLSTMOp(LSTMOp):
    name = "DynamicQuantizeLSTM"
    domain = "com.microsoft"
    modules = (DynamicLSTM,)
    functions = ()

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:  # noqa: ARG002 (of the base)
        """Unlike its float namesake it is made by steps only; in a file it stays what it is."""
        raise node.refuse(IN_INTEGERS)

    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        layer: Any = onnx.module(node)
        name = onnx.layer(node)
        weights, scales = [], []
        for weight in ("weight_ih", "weight_hh"):
            integers, grid = _stored(layer, weight, name)
            weights.append(onnx.initializer(f"{name}.{weight}_quantized", integers.transpose(1, 2)))
            scale = grid.scale.flatten(1)
            scales.append(onnx.initializer(f"{name}.{weight}_scale", scale))
            scales.append(onnx.initializer(f"{name}.{weight}_zero_point", torch.zeros_like(scale, dtype=torch.int8)))
        states = list(node.args[1:]) + [None] * (4 - len(node.args))
        onnx.emit(
            node,
            self.name,
            [node.args[0], *weights, onnx.weight(node, "bias"), *states, onnx.weight(node, "peepholes"), *scales],
            domain=self.domain,
            outputs=3,
            direction=layer.direction,
            hidden_size=layer.hidden,
            clip=layer.clip,
            input_forget=layer.input_forget,
            activations=tuple(ACTIVATIONS[activation].name for activation in layer.activations),
            activation_alpha=layer.activation_alpha,
            activation_beta=layer.activation_beta,
        )


def _stored(layer: nn.Module, name: str, shown: str) -> tuple[Tensor, IntegerGrid]:
    """The integers of a weight, and its grid."""
    grid = grid_of(layer, name)
    chain = constraints_of(layer, name)
    if grid is None or chain[-1] is not grid:
        raise UnsupportedModelError(f"{shown}: its weights left the grid that it was quantized to")
    with torch.no_grad():
        weight: Tensor = raw_parameter(layer, name)
        for constraint in chain[:-1]:
            weight = constraint(weight)
        return grid.integers(weight).to(torch.int8), grid
