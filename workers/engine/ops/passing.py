"""Ops that hand a value on as it is; none of them is written."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import fx

from workers.engine.ops.aten import reads_aten
from workers.engine.ops.base import Op, register, source_of
from workers.engine.ops.constants import constant_of_shape
from workers.engine.ops.shapes import shape

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder


@register
class GetItem(Op):
    """One output of an op that has several; ONNX has no op for it, the writer names the output itself."""

    name = "GetItem"
    domain = "modelpress"
    functions = (operator.getitem,)

    def counted(self, node: fx.Node) -> tuple[str, ...]:  # noqa: ARG002 (of the base)
        return ()

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        """Its producer has bound it already."""

    def axes(self, node: fx.Node, axes: Axes) -> None:
        axes.give(node, axes.parts(source_of(node))[int(node.args[1])])  # type: ignore[arg-type]


@register
class Identity(Op):
    name = "Identity"

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:  # noqa: ARG002 (of the base)
        return node.input(0)


@register
class Dropout(Op):
    """Does nothing in a model that is used, so its mask keeps everything; fine-tuning goes without it."""

    name = "Dropout"

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        training = node.optional(2)
        if isinstance(training, fx.Node) or (training is not None and bool(training)):
            raise node.refuse("it is in training mode; export the model after model.eval()")
        x = node.input(0)
        if len(node.outputs) == 1:
            return x
        everything = graph.call(constant_of_shape, graph.call(shape, x, start=0), graph.constant(torch.tensor(True)))
        return x, everything


@reads_aten(
    "clone.default", "contiguous.default", "detach.default", "detach_.default", "alias.default", "dropout.default",
    "dropout_.default", "feature_dropout.default", "lift_fresh_copy.default",
)  # fmt: skip
def read_aten_identity(node: AtenNode, graph: GraphBuilder) -> Value:  # noqa: ARG001 (nothing is added)
    if node.get("train"):
        raise node.unsupported("the model was exported in training mode; call model.eval() before torch.export.export")
    return node.value("input" if "input" in node.arguments else "self")


@reads_aten("_assert_tensor_metadata.default", "_assert_scalar.default", "sym_constrain_range_for_size.default")
def read_aten_assertion(node: AtenNode, graph: GraphBuilder) -> tuple[Value, ...]:  # noqa: ARG001 (nothing is added)
    return ()
