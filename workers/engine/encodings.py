"""How a weight is stored in a file: each encoding knows its bits and how it is written to ONNX."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder


class Encoding(Protocol):
    @property
    def bits(self) -> float: ...

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

    def transposed(self) -> ScaledIntegers:
        return replace(self, values=self.values.t(), scale=self.scale.t())

    def write(self, onnx: OnnxBuilder, name: str) -> str:
        quantized = onnx.initializer(f"{name}_quantized", self.values)
        scale = onnx.initializer(f"{name}_scale", self.scale)
        return onnx.node("Mul", (onnx.node("Cast", (quantized,), f"{name}_cast", to=1), scale), f"{name}_dequantized")
