"""Softmax and its kin. Before opset 13 they went over all dimensions from an axis on, as if those were one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, fx

from workers.engine.ops.activations import hardmax, log_softmax, softmax
from workers.engine.ops.axis_rules import along_axis, coupled
from workers.engine.ops.base import Op, register
from workers.engine.ops.plain import Plain

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder

KINDS = {"Softmax": softmax, "LogSoftmax": log_softmax, "Hardmax": hardmax}


def coerced_softmax(x: Tensor, *, kind: str, axis: int) -> Tensor:
    return KINDS[kind](x.flatten(axis), axis=-1).reshape(x.shape)


class Softmax(Plain):
    axes = along_axis

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        axis = node.attribute("axis", 1)
        if node.opset >= 13 or axis == -1:
            return super().read(node, graph)
        if type(axis) is not int:
            raise node.invalid("its axis is not a number")
        return graph.call(coerced_softmax, node.input(0), kind=self.name, axis=axis)


for name, function in KINDS.items():
    register(type(name, (Softmax,), {"name": name, "functions": (function,)}))


@register
class CoercedSoftmax(Op):
    """Written as the op of today, between two reshapes."""

    name = "CoercedSoftmax"
    domain = "modelpress"
    functions = (coerced_softmax,)

    def axes(self, node: fx.Node, axes: Axes) -> None:
        first, rank = int(node.kwargs["axis"]), len(axes.shape(node))  # type: ignore[arg-type]
        coupled(self, node, axes, set(range(first % rank, rank)))

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        source = onnx.value(node.args[0])
        matrix = onnx.node("Flatten", [source], f"{node.name}_matrix", axis=node.kwargs["axis"])
        shares = onnx.node(str(node.kwargs["kind"]), [matrix], f"{node.name}_shares", axis=-1)
        onnx.emit(node, "Reshape", [shares, onnx.node("Shape", [source], f"{node.name}_shape")])


def settle_softmax(node: fx.Node) -> None:
    """Today's softmax where it says the same: over the last axis of a shape that is known by now."""
    axis, rank = node.kwargs["axis"], len(node.meta["shape"])
    if axis in (rank - 1, -1):
        node.target = KINDS[str(node.kwargs["kind"])]
        node.kwargs = {"axis": -1}
