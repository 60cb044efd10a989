"""How aten targets read as ops of the table. The readers stand beside the records of the ops that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

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

    Plain numbers among them take the dtype of the first tensor, as PyTorch promotes them.
    """

    def read(node: AtenNode, graph: GraphBuilder) -> Value:
        if node.get("alpha", 1) != 1:
            raise node.unsupported("alpha is not 1")
        operands = [value for name, value in node.arguments.items() if name not in ("alpha", "inplace")]
        return graph.call(function, *operands_of(node, graph, operands))

    reads_aten(*targets)(read)


def operands_of(node: AtenNode, graph: GraphBuilder, values: Sequence[Any]) -> list[Value]:
    dtype = node.dtype or torch.float32
    return [
        value if isinstance(value, (fx.Node, Tensor)) else graph.keep(torch.tensor(value, dtype=dtype))
        for value in (node.plain(value) for value in values)
    ]
