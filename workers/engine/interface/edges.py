"""The two kinds of leaves at the edges of a graph, and how they are written where they are still part of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from modelpress.models import TensorSpec
from workers.engine.ops.base import Op, register, source_of
from workers.engine.opsets import OLDEST_OPSET
from workers.engine.quantization.nodes import module_of

if TYPE_CHECKING:
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder


class Feed(nn.Module, ABC):
    """What callers do to an input before they send it: from the original's form, or an earlier feed's, to a smaller."""

    opset = OLDEST_OPSET
    """The first that knows what `write` writes."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The input as it is sent."""

    def back(self, x: Tensor, sent: Tensor) -> Tensor:  # noqa: ARG002 (of feeds that can be undone)
        """The input x in the form before, as far as what was sent of it says; x where that says too little."""
        return x

    @abstractmethod
    def spec(self, spec: TensorSpec) -> TensorSpec:
        """What the input is afterwards."""

    @abstractmethod
    def told(self) -> str:
        """What callers do, as the rest of a sentence that begins with «send »."""

    def axes(self, node: fx.Node, axes: Axes) -> None:
        """Which dimensions are the same before and after."""
        axes.give(node, axes.of(source_of(node)))

    @abstractmethod
    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        """As part of the model, for a graph that is written before its feeds are taken off."""


class Reply(nn.Module, ABC):
    """What a smaller answer, of one or several values, stands for in the original's form."""

    decides = False
    """Whether the answers are choices, yes or no or a class, and no longer numbers."""
    best: int | None = None
    """How many of the best classes are answered; None: all."""

    @abstractmethod
    def forward(self, *answers: Tensor) -> Tensor:
        """What these answers stand for."""

    def asked(self, original: Tensor) -> Tensor:
        """The original's answer, as far as it can be said in the smaller form: what the result is compared with."""
        return original

    @abstractmethod
    def specs(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The smaller answers, given the original's."""

    @abstractmethod
    def told(self) -> str:
        """What is answered, as the rest of a sentence that begins with the output's name."""

    @abstractmethod
    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        """As part of the model, for a graph that is written before its replies are taken off."""


@register
class FeedOp(Op):
    name = "Feed"
    domain = "modelpress"
    modules = (Feed,)

    def axes(self, node: fx.Node, axes: Axes) -> None:
        module_of(node).axes(node, axes)

    def opset_for(self, node: fx.Node) -> int:
        return int(module_of(node).opset)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module_of(node).write(node, onnx)

    def counted(self, node: fx.Node) -> Iterable[str]:  # noqa: ARG002 (it is no part of the result)
        return ()


@register
class ReplyOp(Op):
    name = "Reply"
    domain = "modelpress"
    modules = (Reply,)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module_of(node).write(node, onnx)

    def counted(self, node: fx.Node) -> Iterable[str]:  # noqa: ARG002 (as above)
        return ()


def edge_of(node: fx.Node, kind: type[nn.Module]) -> Any:
    """The leaf that a node calls where it is of this kind, else None."""
    if node.op != "call_module" or node.graph.owning_module is None:
        return None
    leaf = node.graph.owning_module.get_submodule(str(node.target))
    return leaf if isinstance(leaf, kind) else None
