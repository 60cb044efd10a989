"""How aten targets read as ops of the table. The readers stand beside the records of the ops that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from workers.engine.dtypes import ONNX_OF_TORCH

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode

    AtenRead = Callable[[AtenNode, GraphBuilder], Value | tuple[Value, ...]]

ATEN: dict[str, AtenRead] = {}
"""Target without `torch.ops.aten.`, such as `conv2d.default`: adds the node to the graph, returns its outputs."""


def reads_aten(*targets: str) -> Callable[[AtenRead], AtenRead]:
    """Decorator: bind a reader to targets. Raises ValueError where one is bound already."""

    def bind(read: AtenRead) -> AtenRead:
        for target in targets:
            if target in ATEN:
                raise ValueError(f"aten.{target} is read twice")
            ATEN[target] = read
        return read

    return bind


def reads_aten_as(function: Callable[..., Any], *targets: str) -> None:
    """Targets whose tensors, in the order of their schema, are all that the function takes.

    Numbers and tensors of another dtype are converted as PyTorch does it.
    """

    def read(node: AtenNode, graph: GraphBuilder) -> Value:
        if node.get("alpha", 1) != 1:
            raise node.unsupported("alpha is not 1")
        operands = [value for name, value in node.arguments.items() if name not in ("alpha", "inplace")]
        return graph.call(function, *operands_of(node, graph, operands))

    reads_aten(*targets)(read)


def operands_of(node: AtenNode, graph: GraphBuilder, values: Sequence[Any]) -> list[Value]:
    """All of one dtype: that of the result, or where it is boolean the one in which PyTorch compares them."""
    dtype = node.output_dtypes[0] if node.output_dtypes else None
    if dtype is torch.bool and not node.target.startswith(("logical", "bitwise", "__")):
        dtype = _common([node.plain(value) for value in values])
    return [of_dtype(node.plain(value), dtype or torch.float32, graph) for value in values]


def of_dtype(value: Any, dtype: torch.dtype, graph: GraphBuilder) -> Value:
    """A number or a tensor in this dtype."""
    from workers.engine.ops.casting import cast  # noqa: PLC0415 (that module registers what it reads here)

    if not isinstance(value, (fx.Node, Tensor)):
        return graph.keep(torch.tensor(value, dtype=dtype))
    if dtype_of(value) in (dtype, None):
        return value
    return graph.call(cast, value, to=ONNX_OF_TORCH[dtype], saturate=1)


def dtype_of(value: Value) -> torch.dtype | None:
    """None for a node that no program tells the dtype of."""
    return value.dtype if isinstance(value, Tensor) else value.meta.get("dtype")


def _common(values: Sequence[Any]) -> torch.dtype:
    """Tensors with dimensions decide over those without, and these over numbers (`torch.result_type`)."""
    result: Any = None
    for value in sorted(values, key=_weight, reverse=True):
        sample = value
        if isinstance(value, (fx.Node, Tensor)):
            dims = (1,) if _weight(value) == 2 else ()
            sample = torch.empty(dims, dtype=dtype_of(value) or torch.float32, device="meta")
        if result is None:
            result = sample if isinstance(sample, Tensor) else torch.tensor(sample)
        else:
            result = torch.empty(result.shape, dtype=torch.result_type(result, sample), device="meta")
    dtype: torch.dtype = result.dtype
    return dtype


def _weight(value: Any) -> int:
    if isinstance(value, Tensor):
        return 2 if value.dim() else 1
    return (2 if value.meta.get("sizes", (1,)) else 1) if isinstance(value, fx.Node) else 0
