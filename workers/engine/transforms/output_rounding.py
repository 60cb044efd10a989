"""Rounds what a graph answers: to decimals, to 0 and 1, or small values to 0; gradients pass as if it did not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from workers.engine.dtypes import ONNX_OF_TORCH, TORCH_OF_WORD
from workers.engine.graph import Graph
from workers.engine.ops.axis_rules import elementwise
from workers.engine.ops.base import Op, register
from workers.engine.quantization.nodes import module_of
from workers.engine.transforms.adding import add_leaf, answer, results_of

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder


class Rounded(nn.Module, ABC):
    """A leaf that rounds its input, of any shape; straight through for gradients."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.rounded(x).detach() + (x - x.detach())

    @abstractmethod
    def rounded(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None: ...


class Decimals(Rounded):
    """To so many decimals, halves to the even one."""

    def __init__(self, dtype: torch.dtype, decimals: int) -> None:
        super().__init__(dtype)
        self.factor = 10.0**decimals

    def rounded(self, x: Tensor) -> Tensor:
        return (x * self.factor).round() / self.factor

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        factor = onnx.number(self.factor, self.dtype)
        scaled = onnx.node("Mul", [node.args[0], factor], f"{node.name}_scaled")
        onnx.emit(node, "Div", [onnx.node("Round", [scaled], f"{node.name}_whole"), factor])


class Decided(Rounded):
    """1 above the threshold, 0 at it and below; gradients pass within one half of it."""

    def __init__(self, dtype: torch.dtype, threshold: float) -> None:
        super().__init__(dtype)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        near = x.clamp(self.threshold - 0.5, self.threshold + 0.5)
        return self.rounded(x).detach() + (near - near.detach())

    def rounded(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        yes = onnx.node("Greater", [node.args[0], onnx.number(self.threshold, self.dtype)], f"{node.name}_yes")
        onnx.emit(node, "Cast", [yes], to=ONNX_OF_TORCH[self.dtype])


class Floored(Rounded):
    """Values below become 0."""

    def __init__(self, dtype: torch.dtype, below: float) -> None:
        super().__init__(dtype)
        self.below = below

    def rounded(self, x: Tensor) -> Tensor:
        return torch.where(x < self.below, torch.zeros_like(x), x)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        small = onnx.node("Less", [node.args[0], onnx.number(self.below, self.dtype)], f"{node.name}_small")
        onnx.emit(node, "Where", [small, onnx.number(0.0, self.dtype), node.args[0]])


@register
class RoundedOp(Op):
    name = "Rounded"
    domain = "modelpress"
    modules = (Rounded,)
    axes = elementwise

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module_of(node).write(node, onnx)


def round_outputs(graph: Graph, outputs: Iterable[int], rounding: Callable[[torch.dtype], Rounded]) -> None:
    """Put a leaf of its own in front of each of these outputs, in place. `rounding` makes it for values of a dtype."""
    module = graph.module
    results = results_of(module)
    for index in outputs:
        source = results[index]
        path = add_leaf(module, "rounded", rounding(TORCH_OF_WORD[graph.outputs[index].dtype]))
        with module.graph.inserting_after(source):
            results[index] = module.graph.call_module(path, (source,))
    answer(module, results)
    module.recompile()
