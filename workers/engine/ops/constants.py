"""Values that the file holds or that are made from numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from workers.engine.dtypes import ONNX_OF_TORCH, TORCH_OF_ONNX
from workers.engine.errors import InvalidModelError
from workers.engine.ops.aten import reads_aten
from workers.engine.ops.base import MOST, Op, register
from workers.engine.ops.casting import cast
from workers.engine.ops.plain import as_literal, plain
from workers.engine.ops.reductions import as_ints
from workers.engine.ops.shapes import shape as shape_of

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder


def constant_of_shape(shape: Sequence[int] | Tensor, value: Tensor) -> Tensor:
    """`value` has one element; the result is on its device."""
    sizes = as_ints(shape)
    check_size(sizes)
    return value.reshape(()).expand(sizes).clone()


def check_size(shape: Sequence[int]) -> None:
    """Raises InvalidModelError for a shape that would fill the memory."""
    if math.prod(shape) > MOST:
        raise InvalidModelError(
            f"the model makes a constant of shape {list(shape)}, and {MOST:,} elements are the most: "
            "export it with the shape that it needs"
        )


def number_range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    kind = x.dtype if dtype is None else TORCH_OF_ONNX[dtype]
    return torch.ones(x.shape, dtype=kind, device=x.device).triu(k).tril(k)


@register
class Constant(Op):
    name = "Constant"

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        attributes = node.attributes
        for kind in ("value", "sparse_value"):
            if kind in attributes:
                return graph.name(attributes[kind], node.outputs[0])
        for kind, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
            for name in (kind, f"{kind}s"):
                if name in attributes:
                    return graph.keep(torch.tensor(attributes[name], dtype=dtype))
        raise node.refuse("a constant of this kind is not supported")


@register
class ConstantOfShape(Op):
    name = "ConstantOfShape"
    functions = (constant_of_shape,)
    folds = 0

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        value: Any = node.attribute("value", torch.zeros(1))
        if value.numel() != 1:
            raise node.invalid("its value must have one element")
        shape = as_literal(node.input(0))
        return graph.call(constant_of_shape, shape, graph.constant(value, "fill"))

    def axes(self, node: fx.Node, axes: Axes) -> None:
        """Sizes that do not depend on the inputs may be smaller ones."""
        reason = "it is filled as the sizes of the inputs say"
        dims = [
            axes.stays(size, reason) if axes.sizes.is_open(node, axis) else axes.fresh(size)
            for axis, size in enumerate(axes.shape(node))
        ]
        axes.give(node, dims)
        axes.sized_by(node, 0, dims)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        onnx.emit(node, "ConstantOfShape", [node.args[0]], value=onnx.tensor(onnx.stored(node.args[1]).reshape(1)))


plain("Range", number_range, folds=0)
plain("EyeLike", eye_like)


@reads_aten(
    "zeros.default", "ones.default", "full.default", "new_zeros.default", "new_ones.default", "new_full.default",
    "zeros_like.default", "ones_like.default", "full_like.default",
)  # fmt: skip
def read_aten_filled(node: AtenNode, graph: GraphBuilder) -> Value:
    kind = node.target.split(".")[0].removeprefix("new_").removesuffix("_like")
    number = {"zeros": 0, "ones": 1}.get(kind, node.plain(node.get("fill_value")))
    if not isinstance(number, (bool, int, float)):
        raise node.unsupported("the number that it fills in is computed")
    value = torch.tensor(number, dtype=node.output_dtypes[0] or torch.float32)
    if "size" in node.arguments:
        sizes = node.vector(node.get("size"), graph)
    elif all(isinstance(length, int) for length in node.sizes["self"]):
        sizes = tuple(int(length) for length in node.sizes["self"])
    else:
        sizes = graph.call(shape_of, node.value("self"), start=0)
    if isinstance(sizes, tuple):
        check_size(sizes)
        return graph.keep(value.expand(sizes).clone())
    return graph.call(constant_of_shape, sizes, graph.constant(value, "fill"))


@reads_aten("arange.default", "arange.start", "arange.start_step")
def read_aten_arange(node: AtenNode, graph: GraphBuilder) -> Value:
    dtype = node.output_dtypes[0] or torch.int64
    bounds = [node.plain(bound) for bound in (node.get("start", 0), node.get("end"), node.get("step", 1))]
    if all(isinstance(bound, (int, float)) for bound in bounds):
        return graph.keep(torch.arange(*bounds, dtype=dtype))
    if any(isinstance(bound, float) for bound in bounds):
        raise node.unsupported("it counts in fractions up to a dynamic bound")
    start, end, step = (
        bound if isinstance(bound, fx.Node) else graph.keep(torch.tensor(bound, dtype=torch.int64)) for bound in bounds
    )
    counted = graph.call(number_range, start, end, step)
    return counted if dtype is torch.int64 else graph.call(cast, counted, to=ONNX_OF_TORCH[dtype], saturate=1)
