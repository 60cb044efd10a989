"""What callers may do to an input: leave features out, send bytes, fewer bytes a number, or a smaller image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from modelpress.models import TensorSpec
from workers.engine.dtypes import ONNX_OF_WORD, TORCH_OF_WORD
from workers.engine.interface.edges import Feed
from workers.engine.ops.base import source_of
from workers.engine.ops.resizing import resize

if TYPE_CHECKING:
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder

LAST_BYTE = 255
SMOOTH: dict[str, Any] = {"mode": "linear", "antialias": 1, "exclude_outside": 1}
"""How Pillow and torch make an image smaller."""


class Select(Feed):
    """Only these features along an axis. `index`: int64 (features,), ascending."""

    index: Tensor

    def __init__(self, axis: int, index: Tensor, of: int, *, chosen: bool = True) -> None:
        """`of`: how many there were. Until features are `chosen`, any of them may still go."""
        super().__init__()
        self.register_buffer("index", index)
        self.axis, self.of, self.chosen = axis, of, chosen

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.axis, self.index)

    def back(self, x: Tensor, sent: Tensor) -> Tensor:
        return x.index_copy(self.axis, self.index, sent)

    def spec(self, spec: TensorSpec) -> TensorSpec:
        shape = (*spec.shape[: self.axis], len(self.index), *spec.shape[self.axis + 1 :])
        return spec.model_copy(update={"shape": shape})

    def told(self) -> str:
        return f"only {len(self.index)} of {self.of} along axis {self.axis}, in this order: {_listed(self.index)}"

    def axes(self, node: fx.Node, axes: Axes) -> None:
        dims = axes.of(source_of(node))
        (kept,) = axes.weight(node, "index", ["makes"])
        if self.chosen:
            axes.keep(kept, "feature_selection has chosen these features")
        dims[self.axis] = kept
        axes.give(node, dims)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        onnx.emit(node, "Gather", [node.args[0], onnx.initializer(f"{node.name}_index", self.index)], axis=self.axis)


class Bytes(Feed):
    """round(x × factor + offset) as uint8. `factor`, `offset`: float32, broadcast against the input."""

    factor: Tensor
    offset: Tensor

    def __init__(self, factor: Tensor, offset: Tensor, formula: str) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.register_buffer("offset", offset)
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.factor + self.offset).round().clamp(0, LAST_BYTE).to(torch.uint8)

    def back(self, x: Tensor, sent: Tensor) -> Tensor:
        return ((sent.to(x.dtype) - self.offset) / self.factor).to(x.dtype)

    def spec(self, spec: TensorSpec) -> TensorSpec:
        return spec.model_copy(update={"dtype": "uint8"})

    def told(self) -> str:
        return f"bytes (uint8), of which the model itself makes {self.formula}"

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        scaled = onnx.node("Mul", [node.args[0], onnx.initializer(f"{node.name}_factor", self.factor)], node.name)
        moved = onnx.node("Add", [scaled, onnx.initializer(f"{node.name}_offset", self.offset)], node.name)
        whole = onnx.node("Round", [moved], node.name)
        onnx.emit(
            node, "Cast", [onnx.node("Clip", [whole, 0.0, float(LAST_BYTE)], node.name)], to=ONNX_OF_WORD["uint8"]
        )


class Narrow(Feed):
    """Whole numbers in another type; `most`: the largest that occurs, where the model says it."""

    def __init__(self, word: str, most: int | None) -> None:
        super().__init__()
        self.word, self.most = word, most

    def forward(self, x: Tensor) -> Tensor:
        return x.to(TORCH_OF_WORD[self.word])

    def back(self, x: Tensor, sent: Tensor) -> Tensor:
        return sent.to(x.dtype)

    def spec(self, spec: TensorSpec) -> TensorSpec:
        return spec.model_copy(update={"dtype": self.word})

    def told(self) -> str:
        return f"the same whole numbers as {self.word}" + (f" (0 to {self.most})" if self.most is not None else "")

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        onnx.emit(node, "Cast", [node.args[0]], to=ONNX_OF_WORD[self.word])


class Shrink(Feed):
    """A smaller image, antialiased as image libraries do it. The last two dimensions are height and width."""

    opset = 18

    def __init__(self, share: float, sizes: tuple[int | None, int | None]) -> None:
        """`sizes`: of height and width, None where they are open and the share of them counts."""
        super().__init__()
        self.share, self.sizes = share, sizes

    def sizes_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        pairs = zip(shape[-2:], self.sizes, strict=True)
        return tuple(smaller(size, self.share) if fixed is None else fixed for size, fixed in pairs)

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, None, None, self.sizes_of(x.shape), axes=(-2, -1), **SMOOTH)

    def spec(self, spec: TensorSpec) -> TensorSpec:
        ends = (dim if size is None else size for dim, size in zip(spec.shape[-2:], self.sizes, strict=True))
        return spec.model_copy(update={"shape": (*spec.shape[:-2], *ends)})

    def told(self) -> str:
        height, width = (f"{self.share:g} of it" if size is None else str(size) for size in self.sizes)
        return f"images made smaller (bilinear, antialiased): height {height}, width {width}"

    def axes(self, node: fx.Node, axes: Axes) -> None:
        axes.freeze(node, "callers make it smaller")

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        scales = (1.0, 1.0, self.share, self.share)
        onnx.emit(node, "Resize", [node.args[0], None, scales], **SMOOTH)


def smaller(size: int, share: float) -> int:
    return max(1, int(size * share))


def _listed(index: Tensor) -> str:
    """Runs of neighbours as first–last."""
    numbers = index.tolist()
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
