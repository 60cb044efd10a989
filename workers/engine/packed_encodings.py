"""Integers of few bits that stand packed in a file and that runtimes unfold to plain floats when they load it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from onnx import TensorProto
from torch import Tensor

from workers.engine.encodings import INNER, stored_halves, unpacking
from workers.engine.opsets import OLDEST_OPSET

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder

PLANES = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,), 1: (1,)}
"""Bits that lie together in bytes: three bits are a plane of the lower two and one of the highest."""
WORTH_PACKING = 512
"""Zero points in bytes cost no more than the nodes that would unfold them."""


@dataclass(frozen=True)
class PackedIntegers:
    """Rows of blocks of integers behind shifts, a cast and a product: value = (integer - zero) × scale.

    `values` uint8 (rows, blocks, length), each in a byte, in which a weight of `shape` lies with its axes in `order`,
    the ends of its rows filled up; `scale` (rows, blocks, 1) float32 or bfloat16; `zero` of the same shape, uint8 or
    bfloat16, or one number for all. Runtimes compute all of it once, so that it takes no time.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor | int
    width: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    opset: int = OLDEST_OPSET

    @property
    def bits(self) -> float:
        taken = self.values.numel() * self.width + 8 * self.scale.nbytes
        if isinstance(self.zero, Tensor):
            whole = self.zero.dtype == torch.uint8 and self.zero.numel() >= WORTH_PACKING
            taken += self.zero.numel() * self.width if whole else 8 * self.zero.nbytes
        return taken / math.prod(self.shape)

    def transposed(self) -> PackedIntegers:
        return replace(self, shape=self.shape[::-1], order=tuple(1 - axis for axis in self.order))

    def write(self, onnx: OnnxBuilder, name: str) -> str:
        integers = self._floats(onnx, f"{name}_integers", self.values)
        zero = self._zero(onnx, f"{name}_zero")
        shifted = onnx.node("Sub", [integers, zero], INNER, label="")
        scale = stored_halves(onnx, f"{name}_scale", self.scale)
        rows, count, length = self.values.shape
        inside = math.prod(self.shape) // rows
        value = onnx.node("Mul", [shifted, scale], INNER, label="")
        if count * length > inside:
            value = onnx.node("Reshape", [value, (rows, -1)], INNER, label="")
            value = onnx.node("Slice", [value, (0,), (inside,), (1,)], INNER, label="")
        stored = tuple(self.shape[axis] for axis in self.order)
        value = onnx.node("Reshape", [value, stored], f"{name}_values", label="")
        back = tuple(sorted(range(len(self.order)), key=self.order.__getitem__))
        if back == tuple(range(len(back))):
            return value
        return onnx.node("Transpose", [value], f"{name}_turned", label="", perm=back)

    def _floats(self, onnx: OnnxBuilder, name: str, values: Tensor) -> str:
        """The integers as floats of the same shape."""
        total, below = "", 0
        for width in PLANES[self.width]:
            plane = (values.to(torch.int32) >> below & (2**width - 1)).to(torch.uint8)
            plain = unpacking(onnx, f"{name}_{width}" if below else name, plane, width)
            part = onnx.node("Cast", [plain], INNER, label="", to=TensorProto.FLOAT)
            if below:
                raised = onnx.node("Mul", [part, onnx.number(2.0**below, torch.float32)], INNER, label="")
                part = onnx.node("Add", [total, raised], INNER, label="")
            total, below = part, below + width
        return total

    def _zero(self, onnx: OnnxBuilder, name: str) -> str:
        if not isinstance(self.zero, Tensor):
            return onnx.number(self.zero, torch.float32)
        if self.zero.dtype != torch.uint8:
            return stored_halves(onnx, name, self.zero)
        if self.zero.numel() >= WORTH_PACKING:
            return self._floats(onnx, name, self.zero)
        return onnx.node("Cast", [onnx.initializer(name, self.zero)], INNER, label="", to=TensorProto.FLOAT)
