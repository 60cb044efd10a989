"""An activation on a grid of 8-bit integers: a leaf of the graph, written as a QuantizeLinear/DequantizeLinear pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from workers.engine.ops.axis_rules import elementwise
from workers.engine.ops.base import Op, Quantization, register
from workers.engine.quantization.lowering import gate
from workers.engine.quantization.ranges import LEVELS, Range

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder


class FakeQuantize(nn.Module):
    """value → (clamp(round(value / scale) + zero_point, 0, 255) - zero_point) × scale × gain, straight through inside.

    `scale` float32 and `zero_point` int32, both 0-d. A gain other than 1 reads the integers with another scale than
    they were written with: a multiplication that costs nothing.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        self.gain = gain

    @classmethod
    def of(cls, bounds: Range, gain: float = 1.0) -> FakeQuantize:
        """For values with these bounds after the gain."""
        scale, zero_point = bounds.grid
        return cls(scale / gain, zero_point, gain)

    def forward(self, value: Tensor) -> Tensor:
        quantized = torch.fake_quantize_per_tensor_affine(value, self.scale, self.zero_point, 0, LEVELS - 1)
        return quantized if self.gain == 1 else quantized * self.gain


@register
class FakeQuantizeOp(Op):
    name = "FakeQuantize"
    domain = "modelpress"
    modules = (FakeQuantize,)
    quantization = Quantization(inputs=(), output=False)
    axes = elementwise

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module: Any = onnx.module(node)
        name = str(node.target)
        scale = onnx.initializer(f"{name}_scale", module.scale)
        zero_point = onnx.initializer(f"{name}_zero_point", module.zero_point.to(torch.uint8))
        quantized = onnx.node("QuantizeLinear", (onnx.value(node.args[0]), scale, zero_point), f"{node.name}_quantized")
        onnx.integers[node] = quantized
        if node.users and all(user.target is gate for user in node.users):
            return  # ONNX Runtime would compute what nobody reads
        read_scale = onnx.initializer(f"{name}_read_scale", module.scale * module.gain)
        onnx.emit(node, "DequantizeLinear", (quantized, read_scale, zero_point))
