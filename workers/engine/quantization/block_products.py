"""Matrix products that ONNX Runtime computes from packed integers, rounding what it multiplies them with to 8 bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx, nn

from workers.engine.encodings import ProductIntegers
from workers.engine.errors import UnsupportedModelError
from workers.engine.ops.base import Op, register
from workers.engine.ops.linear import Linear
from workers.engine.quantization.leaves import become
from workers.engine.quantization.nodes import module_of

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder

LEVELS = 127


def rounded_in_blocks(x: Tensor, length: int) -> Tensor:
    """x (…, values) on whole multiples of 1/127 of the largest of each block; gradients pass straight through."""
    blocks = F.pad(x.detach(), (0, -x.shape[-1] % length)).unflatten(-1, (-1, length))
    largest = blocks.abs().amax(-1, keepdim=True)
    # multiplied with the inverse, as kernels do, so that most of what lies close to halfway goes to the same side
    rounded = (blocks * (LEVELS / largest.clamp_min(1e-30))).round() * (largest / LEVELS)
    return rounded.flatten(-2)[..., : x.shape[-1]] + (x - x.detach())


class BlockLinear(Linear):
    """Answers as ONNX Runtime's kernel does. `length`: values in each block of the weight's rows."""

    length: int

    @classmethod
    def of(cls, layer: Linear, length: int) -> nn.Module:
        """The same layer, computed with integers."""
        made = become(layer, cls)
        made.length = length  # type: ignore[assignment]  # it is of this class
        return made

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded_in_blocks(x, self.length), self.weight, self.bias)


@register
class BlockLinearOp(Op):
    """Written as ONNX Runtime's own op; read, it is a float layer again."""

    name = "BlockLinear"
    domain = "modelpress"
    modules = (BlockLinear,)
    weights: ClassVar[dict[str, int]] = {"weight": 0}

    def counted(self, node: fx.Node) -> tuple[str, ...]:  # noqa: ARG002 (of the base)
        return ("MatMulNBits",)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        encoding = onnx.encoding(node, "weight")
        if not isinstance(encoding, ProductIntegers):
            raise UnsupportedModelError(f"{onnx.layer(node)}: its weights left the grid that they were quantized to")
        encoding.multiply(onnx, node, onnx.weight(node, "bias"))

    def macs(self, node: fx.Node) -> int:
        return math.prod(node.meta["shape"]) * int(module_of(node).weight.shape[1])
