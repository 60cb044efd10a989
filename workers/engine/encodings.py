"""How a weight is stored in a file: each encoding knows its bits and how it is written to ONNX."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from onnx import TensorProto
from torch import Tensor, fx

from workers.engine.opsets import OLDEST_OPSET

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder

NARROW_KINDS = {
    (2, torch.int8): TensorProto.INT2,
    (2, torch.uint8): TensorProto.UINT2,
    (4, torch.int8): TensorProto.INT4,
    (4, torch.uint8): TensorProto.UINT4,
    (8, torch.int8): TensorProto.INT8,
    (8, torch.uint8): TensorProto.UINT8,
}
OPSET_OF_BITS = {2: 25, 4: 21, 8: 21}
"""First opset whose `DequantizeLinear` takes blocks of such integers."""
INNER = "unfolded"
"""What values are called on the way from stored integers to a weight: a short name, since there are many of them."""
IN_BYTES = 4
"""The `accuracy_level` of `MatMulNBits` that lets it round its inputs to 8 bits."""


def packed(values: Tensor, bits: int) -> Tensor:
    """Integers of so few bits along the last axis, several to a byte, the first lowest; uint8, filled up with zeros."""
    each = 8 // bits
    filled = F.pad(values.view(torch.uint8) & (2**bits - 1), (0, -values.shape[-1] % each))
    places = bits * torch.arange(each, dtype=torch.int32, device=values.device)
    lanes = filled.unflatten(-1, (-1, each)).to(torch.int32) << places
    return lanes.sum(-1).to(torch.uint8)


def unpacking(onnx: OnnxBuilder, name: str, values: Tensor, bits: int) -> str:
    """Store integers (uint8) of so few bits packed; the name of what unfolds to them again, uint8 of their shape.

    Each byte is shifted by every multiple of the bits, and what is above them is cut off.
    """
    if bits == 8:
        return onnx.initializer(name, values)
    whole = values.shape[-1] % (8 // bits) == 0  # then it lies as kernels for packed integers have it
    content = packed(values if whole else values.flatten(), bits)
    stored = onnx.node("Reshape", [onnx.initializer(f"{name}_packed", content), (-1, 1)], INNER, label="")
    steps = onnx.initializer(f"steps_{bits}", torch.arange(0, 8, bits, dtype=torch.uint8))
    limit = onnx.initializer(f"limit_{bits}", torch.tensor(2**bits, dtype=torch.uint8))
    shifted = onnx.node("BitShift", [stored, steps], INNER, label="", direction="RIGHT")
    flat = onnx.node("Mod", [shifted, limit], INNER, label="")
    if not whole:
        flat = onnx.node("Reshape", [flat, (-1,)], INNER, label="")
        flat = onnx.node("Slice", [flat, (0,), (values.numel(),)], INNER, label="")
    return onnx.node("Reshape", [flat, tuple(values.shape)], INNER, label="")


def stored_halves(onnx: OnnxBuilder, name: str, numbers: Tensor) -> str:
    """Store floats in their own type; the name of the same as float32."""
    stored = onnx.initializer(name, numbers)
    if numbers.dtype == torch.float32:
        return stored
    return onnx.node("Cast", [stored], INNER, label="", to=TensorProto.FLOAT)


class Encoding(Protocol):
    @property
    def bits(self) -> float:
        """That a value takes."""

    @property
    def opset(self) -> int:
        """First opset that knows the form."""

    def transposed(self) -> Encoding:
        """The same for the transposed matrix: some ops store their weight as (in, out)."""

    def write(self, onnx: OnnxBuilder, name: str) -> str:
        """Add initializers (and the nodes that unfold them) and return the name of the float value."""


@dataclass(frozen=True)
class Integers:
    """Integers behind `DequantizeLinear`: value = (integer - zero_point) × scale.

    `values` int8, or int32 for a bias, of the weight's shape; `scale` float32 and `zero_point` of the type of the
    values (None: zero), both of shape (channels,) along `axis`, or 0-d where axis is None.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None
    axis: int | None
    bits: float = 8.0
    opset: int = OLDEST_OPSET

    def transposed(self) -> Integers:
        return replace(self, values=self.values.t(), axis=None if self.axis is None else 1 - self.axis)

    def write(self, onnx: OnnxBuilder, name: str) -> str:
        inputs = [onnx.initializer(f"{name}_quantized", self.values), onnx.initializer(f"{name}_scale", self.scale)]
        if self.zero_point is not None:
            inputs.append(onnx.initializer(f"{name}_zero_point", self.zero_point))
        attributes: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        return onnx.node("DequantizeLinear", inputs, f"{name}_dequantized", **attributes)


@dataclass(frozen=True)
class HalfFloat:
    """16-bit floats (float16 or bfloat16) behind a `Cast` to float32, which runtimes fold at load."""

    values: Tensor
    bits: float = 16.0
    opset: int = OLDEST_OPSET

    def transposed(self) -> HalfFloat:
        return replace(self, values=self.values.t())

    def write(self, onnx: OnnxBuilder, name: str) -> str:
        stored = onnx.initializer(f"{name}_half", self.values)
        return onnx.node("Cast", (stored,), f"{name}_float", to=1)


@dataclass(frozen=True)
class ScaledIntegers:
    """Integers behind `Cast` and `Mul`, which runtimes fold to plain floats at load: smaller files at no time.

    `values` int8; `scale` float32 of the same rank, broadcast over them.
    """

    values: Tensor
    scale: Tensor
    bits: float = 8.0
    opset: int = OLDEST_OPSET

    def transposed(self) -> ScaledIntegers:
        return replace(self, values=self.values.t(), scale=self.scale.t())

    def write(self, onnx: OnnxBuilder, name: str) -> str:
        quantized = onnx.initializer(f"{name}_quantized", self.values)
        scale = onnx.initializer(f"{name}_scale", self.scale)
        return onnx.node("Mul", (onnx.node("Cast", (quantized,), f"{name}_cast", to=1), scale), f"{name}_dequantized")


@dataclass(frozen=True)
class BlockIntegers:
    """Integers of 8, 4 or 2 bits behind `DequantizeLinear`, a scale for each block of places along an axis.

    `values` int8 or uint8, each in a byte, of the weight's shape; `scale` float32 and `zero_point` (of the type of the
    values; None: zero) of the same shape, but with ⌈length / block⌉ places along the axis. A block as long as the axis
    gives every row of a recurrent layer with several directions a scale of its own. Before a `MatMul`, and of 4 or 8
    bits, ONNX Runtime makes one kernel of both, which rounds the inputs to 8 bits: `ProductIntegers` does not.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None
    block: int
    width: int
    axis: int = -1

    @property
    def bits(self) -> float:
        return self.width + (32 + (0 if self.zero_point is None else self.width)) / self.block

    @property
    def opset(self) -> int:
        return OPSET_OF_BITS[self.width]

    def transposed(self) -> BlockIntegers:
        return replace(
            self,
            values=self.values.t(),
            scale=self.scale.t(),
            zero_point=None if self.zero_point is None else self.zero_point.t(),
            axis=0 if self.axis % 2 else 1,
        )

    def write(self, onnx: OnnxBuilder, name: str) -> str:
        inputs = [self._store(onnx, f"{name}_quantized", self.values), onnx.initializer(f"{name}_scale", self.scale)]
        if self.zero_point is not None:
            inputs.append(self._store(onnx, f"{name}_zero_point", self.zero_point))
        axis = self.axis % self.values.dim()
        return onnx.node("DequantizeLinear", inputs, f"{name}_dequantized", axis=axis, block_size=self.block)

    def _store(self, onnx: OnnxBuilder, name: str, values: Tensor) -> str:
        content = values if self.width == 8 else packed(values.flatten(), self.width)
        return onnx.packed(name, NARROW_KINDS[self.width, values.dtype], tuple(values.shape), content)


@dataclass(frozen=True)
class ProductIntegers(BlockIntegers):
    """The same for the weight (out, in) of a matrix product, which ONNX Runtime computes without unfolding it.

    `values` and `zero_point` uint8; `block` 16 or a larger power of two; `scale` float32 or bfloat16. Without a zero
    point it is half the range. `rounded`: ONNX Runtime may round the inputs to 8 bits, block by block, and multiply
    integers, which is faster for large matrices.
    """

    rounded: bool = False

    @property
    def bits(self) -> float:
        """As stored: rows are filled up to whole blocks."""
        zeros = 0 if self.zero_point is None else packed(self.zero_point, self.width).nbytes
        filled = self.scale.numel() * self.block * self.width
        return (filled + 8 * (self.scale.nbytes + zeros)) / self.values.numel()

    def multiply(self, onnx: OnnxBuilder, node: fx.Node, bias: str) -> None:
        """Write the product of the node's input with the weight, and the bias ("": none)."""
        name = onnx.layer(node)
        out, inside = self.values.shape
        blocks = F.pad(self.values, (0, -inside % self.block)).unflatten(1, (-1, self.block))
        inputs: list[Any] = [
            node.args[0],
            onnx.initializer(f"{name}.weight_packed", packed(blocks, self.width)),
            stored_halves(onnx, f"{name}.weight_scale", self.scale),
        ]
        if self.zero_point is not None:
            inputs.append(onnx.initializer(f"{name}.weight_zero_point", packed(self.zero_point, self.width)))
        if bias:
            inputs += [None] * (5 - len(inputs)) + [bias]
        sizes = {"K": inside, "N": out, "bits": self.width, "block_size": self.block}
        if self.rounded:
            sizes["accuracy_level"] = IN_BYTES
        onnx.emit(node, "MatMulNBits", inputs, domain="com.microsoft", **sizes)

    def write(self, onnx: OnnxBuilder, name: str) -> str:
        """For layers that are no product: unfolded by `DequantizeLinear`."""
        if self.zero_point is not None:
            return BlockIntegers.write(replace(self, scale=self.scale.float()), onnx, name)
        middle = torch.full_like(self.scale, 2 ** (self.width - 1), dtype=torch.uint8)
        return replace(self, zero_point=middle).write(onnx, name)


@dataclass(frozen=True)
class Codebook:
    """Indices into a few values, packed to 1, 2, 4 or 8 bits, behind a `Gather`: folded to plain floats at load.

    `indices` uint8 of the weight's shape; `values` float32 (entries,); `scale` float32 that broadcasts over the weight,
    or None. Two values of -1 and 1 with a scale are a binary weight, three a ternary one.
    """

    indices: Tensor
    values: Tensor
    scale: Tensor | None = None
    opset: int = OLDEST_OPSET

    @property
    def bits(self) -> float:
        least = max(1, math.ceil(math.log2(len(self.values))))
        return float(2 ** math.ceil(math.log2(least)))

    def transposed(self) -> Codebook:
        return replace(self, indices=self.indices.t(), scale=None if self.scale is None else self.scale.t())

    def write(self, onnx: OnnxBuilder, name: str) -> str:
        book = onnx.initializer(f"{name}_codebook", self.values)
        plain = unpacking(onnx, f"{name}_indices", self.indices, int(self.bits))
        indices = onnx.node("Cast", [plain], f"{name}_integers", to=TensorProto.INT32)
        if self.scale is None:
            return onnx.node("Gather", [book, indices], f"{name}_values")
        values = onnx.node("Gather", [book, indices], f"{name}_unscaled")
        return onnx.node("Mul", [values, onnx.initializer(f"{name}_scale", self.scale)], f"{name}_values")
