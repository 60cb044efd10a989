"""Changes of element type."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from workers.engine.dtypes import ONNX_OF_TORCH, TORCH_OF_ONNX
from workers.engine.ops.aten import reads_aten
from workers.engine.ops.axis_rules import elementwise
from workers.engine.ops.base import ANY, register
from workers.engine.ops.plain import Plain, plain

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:  # noqa: ARG001 (matters for 8-bit floats only)
    return x.to(TORCH_OF_ONNX[to])


def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1) -> Tensor:  # noqa: ARG001 (as above)
    return x.to(like.dtype)


def bit_cast(x: Tensor, *, to: int) -> Tensor:
    return x.view(TORCH_OF_ONNX[to])


plain("BitCast", bit_cast, opset=26)
plain("CastLike", cast_like, axes=elementwise, attribute_since={"saturate": 19}, opset=15)


@register
class Cast(Plain):
    name = "Cast"
    functions = (cast,)
    axes = elementwise
    folds = ANY
    attribute_since: ClassVar[dict[str, int]] = {"saturate": 19}

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        value, to = node.input(0), node.attribute("to")
        if to not in TORCH_OF_ONNX:
            raise node.refuse(f"type number {to} is not supported")
        return graph.call(cast, value, to=to, saturate=node.attribute("saturate", 1))


@reads_aten("to.dtype", "to.dtype_layout", "to.device", "_to_copy.default")
def read_aten_cast(node: AtenNode, graph: GraphBuilder) -> Value:
    dtype = node.get("dtype")
    if dtype is None or dtype == node.dtype:
        return node.value("self")
    return graph.call(cast, node.value("self"), to=ONNX_OF_TORCH[dtype], saturate=1)


@reads_aten("to.other", "type_as.default")
def read_aten_cast_like(node: AtenNode, graph: GraphBuilder) -> Value:
    dtype = node.dtypes["other"]
    if dtype is None or dtype == node.dtype:
        return node.value("self")
    return graph.call(cast, node.value("self"), to=ONNX_OF_TORCH[dtype], saturate=1)
