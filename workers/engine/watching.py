"""A graph that answers with some of its inner values too."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx

from workers.engine.ops.fused_attention import attention

SHARES, SHARES_PLACE = 3, 3
"""Of fused attention: the mode in which it gives its probabilities, and the place of its results where they come."""


def watched(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """One that shares the leaves and weights of this one, and gives a tuple: its outputs, then these values of it.

    Of fused attention, the probabilities are the value.
    """
    if not nodes:
        return module
    copy, places = fx.Graph(), dict[fx.Node, fx.Node]()
    outputs = copy.graph_copy(module.graph, places)
    own = outputs if isinstance(outputs, tuple | list) else (outputs,)
    copy.output((*own, *(_value(copy, places[node]) for node in nodes)))
    return fx.GraphModule(module, copy)


def _value(copy: fx.Graph, node: fx.Node) -> fx.Node:
    if node.target is not attention:
        return node
    node.kwargs = {**node.kwargs, "qk_matmul_output_mode": SHARES}
    return copy.call_function(operator.getitem, (node, SHARES_PLACE))


@torch.no_grad()
def values_of(module: fx.GraphModule, nodes: Iterable[fx.Node], inputs: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
    """What these nodes are for these inputs; those that are no tensors are left out."""
    wanted = list(nodes)
    if not wanted:
        return {}
    found = watched(module, wanted)(*inputs)[-len(wanted) :]
    return {node: value for node, value in zip(wanted, found, strict=True) if isinstance(value, Tensor)}
