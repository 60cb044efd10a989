"""Runs a float graph and its quantized copy side by side, node by node, so that each layer can be mended in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from workers.engine.graph import Graph
from workers.engine.ops.base import source_of
from workers.engine.quantization.insertion import Quantized
from workers.engine.quantization.simulation import join

Visit = Callable[[fx.Node, Tensor, Tensor], None]
"""(quantized layer node, its input in the quantized graph, its output in the float graph)"""


@torch.no_grad()
def walk(graph: Graph, quantized: Quantized, batches: Sequence[Sequence[Tensor]], visit: Visit) -> None:
    """Visit each integer layer before it runs in the quantized graph: what the visitor mends, later layers see."""
    floats, integers = Steps(graph.module, batches), Steps(quantized.graph.module, batches)
    origin = {copied: node for node, copied in quantized.twin.items()}
    layers, ahead = set(quantized.layers), iter(graph.module.graph.nodes)
    for node in quantized.graph.module.graph.nodes:
        if node in origin:
            for own in ahead:
                floats.run(own)
                if own is origin[node]:
                    break
                floats.forget(own)  # its copy was taken up by the scale of a neighbour
        if node in layers:
            visit(node, join(integers.values[source_of(node)]), join(floats.values[origin[node]]))
        integers.run(node)
        integers.forget(node)
        if node in origin:
            floats.forget(origin[node])


class Steps:
    """A graph run one node at a time, on all batches; values are dropped after their last reader."""

    def __init__(self, module: fx.GraphModule, batches: Sequence[Sequence[Tensor]]) -> None:
        self.values: dict[fx.Node, list[Any]] = {}
        """Of each node its result for every batch."""
        self._batches = range(len(batches))
        self._inputs = zip(*batches, strict=True)
        self._interpreter = fx.Interpreter(module)
        self._unread = {node: len(node.users) for node in module.graph.nodes}

    def run(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.values[node] = list(next(self._inputs))
            return
        self.values[node] = [self._result(node, batch) for batch in self._batches]

    def arguments(self, node: fx.Node, batch: int) -> tuple[Any, Any]:
        """What a node is called with on one batch, positions and keywords."""
        found: tuple[Any, Any] = fx.node.map_arg((node.args, node.kwargs), lambda value: self.values[value][batch])
        return found

    def _result(self, node: fx.Node, batch: int) -> Any:
        args, kwargs = self.arguments(node, batch)
        return getattr(self._interpreter, node.op)(node.target, args, kwargs)

    def forget(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            self._unread[source] -= 1
            if not self._unread[source]:
                del self.values[source]
