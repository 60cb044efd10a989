"""A graph that answers with some of its inner values too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx


def watched(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """One that shares the leaves and weights of this one, and gives a tuple: its outputs, then these values of it."""
    if not nodes:
        return module
    copy, places = fx.Graph(), dict[fx.Node, fx.Node]()
    outputs = copy.graph_copy(module.graph, places)
    own = outputs if isinstance(outputs, tuple | list) else (outputs,)
    copy.output((*own, *(places[node] for node in nodes)))
    return fx.GraphModule(module, copy)


@torch.no_grad()
def values_of(module: fx.GraphModule, nodes: Iterable[fx.Node], inputs: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
    """What these nodes are for these inputs; those that are no tensors are left out."""
    wanted = list(nodes)
    found = watched(module, wanted)(*inputs)
    last = found[len(found) - len(wanted) :] if wanted else ()
    return {node: value for node, value in zip(wanted, last, strict=True) if isinstance(value, Tensor)}
