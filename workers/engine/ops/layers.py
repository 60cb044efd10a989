"""Layers: leaves where the file stores their weights, plain functions with ONNX's attributes where it computes them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import fx

from workers.engine.ops.plain import Plain

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder


class LayerOp(Plain):
    """`modules` has the leaf, `functions` the function of the same inputs and attributes."""

    weight_inputs: ClassVar[tuple[int, ...]]
    """Positions of the inputs that are weights."""

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        stored = node.stores(*self.weight_inputs)
        return self.read_layer(node, graph) if stored else self.read_function(node, graph)

    def read_function(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        return super().read(node, graph)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        if node.op == "call_module":
            self.write_layer(node, onnx)
        else:
            super().write(node, onnx)

    @abstractmethod
    def read_layer(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        """A leaf with the stored weights."""

    @abstractmethod
    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        """The call of a leaf."""

    def axes(self, node: fx.Node, axes: Axes) -> None:
        if node.op == "call_module":
            self.layer_axes(node, axes)
        else:
            axes.freeze(node, f"the weights of {self.name} are computed by the model")

    @abstractmethod
    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        """The rule of a leaf."""
