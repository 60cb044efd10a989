"""What smaller answers stand for: numbers in fewer bytes, yes or no, or the best classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from modelpress.models import TensorSpec
from workers.engine.dtypes import ONNX_OF_WORD, TORCH_OF_WORD
from workers.engine.interface.edges import Reply

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder

BELOW = 1e-3
"""How far below the last class that is answered the others are taken to be: enough for none of them to be the best."""


class Steps(Reply):
    """Numbers in a narrower type: the value is (answer - `zero`) × `scale`."""

    def __init__(self, word: str, of: str, scale: float = 1.0, zero: int = 0) -> None:
        """`of`: the original's type."""
        super().__init__()
        self.word, self.of, self.scale, self.zero = word, of, scale, zero

    def forward(self, *answers: Tensor) -> Tensor:
        return (answers[0].to(TORCH_OF_WORD[self.of]) - self.zero) * self.scale

    def specs(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        return (spec.model_copy(update={"dtype": self.word}),)

    def told(self) -> str:
        return f"is {self.unit}"

    @property
    def unit(self) -> str:
        if (self.scale, self.zero) == (1.0, 0):
            return self.word
        return f"{self.word}, of which the value is (answer - {self.zero}) × {self.scale:.9g}"

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        onnx.emit(node, "Mul", self.factors(node.args[0], node.name, onnx))

    def factors(self, answer: Any, name: str, onnx: OnnxBuilder) -> tuple[str, str]:
        """Whose product is the value that an answer stands for."""
        dtype = TORCH_OF_WORD[self.of]
        wide = onnx.node("Cast", [answer], name, to=ONNX_OF_WORD[self.of])
        return onnx.node("Sub", [wide, onnx.number(self.zero, dtype)], name), onnx.number(self.scale, dtype)


class YesOrNo(Steps):
    """1 above a threshold, else 0."""

    decides = True

    def __init__(self, word: str, of: str, threshold: float) -> None:
        super().__init__(word, of)
        self.threshold = threshold

    def asked(self, original: Tensor) -> Tensor:
        return (original > self.threshold).to(original.dtype)

    def told(self) -> str:
        return f"is 1 where the original answers more than {self.threshold:g}, else 0, as {self.word}"


class Best(Reply):
    """The highest scores along an axis of classes, best first: their values, if asked for, and which classes they are.

    Where there are no values, 1 stands for the first, less for each that follows, and 0 for all others.
    """

    def __init__(self, best: int, shape: tuple[int, ...], axis: int, values: Steps | None, places: str) -> None:
        """`shape`: of the original's answers, of which only the size along the axis counts. `places`: their type."""
        super().__init__()
        self.best: int = best
        self.rank, self.axis, self.classes = len(shape), axis, shape[axis]
        self.values, self.places = values, places
        self.decides = values is None

    def forward(self, *answers: Tensor) -> Tensor:
        places = answers[-1].long()
        shape = list(places.shape)
        shape[self.axis] = self.classes
        if self.values is None:
            ranks = self._ranks().to(places.device).expand(places.shape)
            return ranks.new_zeros(shape).scatter(self.axis, places, ranks)
        values = self.values(answers[0])
        lowest = values.amin(self.axis, keepdim=True)
        rest = (lowest - BELOW * lowest.abs().clamp_min(BELOW)).expand(shape)
        return rest.scatter(self.axis, places, values)

    def asked(self, original: Tensor) -> Tensor:
        values, places = original.topk(self.best, self.axis)
        if self.values is None:
            return self(places)
        plain = Best(self.best, tuple(original.shape), self.axis, Steps(self.values.of, self.values.of), self.places)
        return plain(values, places)

    def specs(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        shape = list(spec.shape)
        shape[self.axis] = self.best
        smaller = spec.model_copy(update={"shape": tuple(shape)})
        if self.values is None:
            return (smaller.model_copy(update={"dtype": self.places}),)
        name = f"{spec.name}_indices"
        return (*self.values.specs(smaller), smaller.model_copy(update={"name": name, "dtype": self.places}))

    def told(self) -> str:
        which = f"the {self.best} best of {self.classes} classes, best first" if self.best > 1 else "the best class"
        if self.values is None:
            return f"holds the numbers of {which}, as {self.places}"
        return (
            f"holds the values of {which}, as {self.values.unit}; a second output, of this name and _indices, holds "
            f"the numbers of these classes, as {self.places}"
        )

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        name, of = node.name, self.values.of if self.values else "float32"
        dtype = TORCH_OF_WORD[of]
        places = onnx.node("Cast", [node.args[-1]], name, to=ONNX_OF_WORD["int64"])
        if self.values is None:
            number = onnx.node("Cast", [places], name, to=ONNX_OF_WORD[of])
            nothing = onnx.node("Mul", [number, onnx.number(0, dtype)], name)
            values = onnx.node("Add", [nothing, onnx.initializer(f"{name}_ranks", self._ranks())], name)
        else:
            values = onnx.node("Mul", self.values.factors(node.args[0], name, onnx), name)
        rest = onnx.node("Gather", [values, (-1,)], name, axis=self.axis)
        if self.values is None:
            rest = onnx.node("Mul", [rest, onnx.number(0, dtype)], name)
        else:
            size = onnx.node("Max", [onnx.node("Abs", [rest], name), onnx.number(BELOW, dtype)], name)
            rest = onnx.node("Sub", [rest, onnx.node("Mul", [size, onnx.number(BELOW, dtype)], name)], name)
        repeats = [1] * self.rank
        repeats[self.axis] = self.classes
        wide = onnx.node("Tile", [rest, tuple(repeats)], name)
        onnx.emit(node, "ScatterElements", [wide, places, values], axis=self.axis)

    def _ranks(self) -> Tensor:
        """1 for the best class, less for each that follows; broadcast against answers."""
        shape = [1] * self.rank
        shape[self.axis] = self.best
        return (1 - torch.arange(self.best) / self.best).reshape(shape)
