"""Widens depthwise convolutions to a width that integer kernels compute in whole registers: with channels of zeros.

ONNX Runtime's depthwise kernel takes 2.5 to 3 times as long an element where the channels are no multiple of 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

from workers.engine.constraints import tied_parameters
from workers.engine.graph import Graph
from workers.engine.ops.convolution import Conv
from workers.engine.structure.axes import Axes
from workers.engine.structure.groups import Group, find_groups
from workers.engine.structure.labels import Dim

WIDTH = 16


def align_depthwise(graph: Graph) -> list[str]:
    """Add channels of zeros, in place, where nothing but weights has to know. Returns the names of the convolutions.

    The graph answers as before.
    """
    if not any(_is_ragged(module) for module in graph.module.modules()):
        return []
    tied, widened = tied_parameters(graph.module), []
    for group in find_groups(graph):
        owners = [graph.module.get_submodule(slot.owner) for slot in group.slots]
        if not any(_is_ragged(owner) for owner in owners) or group.frozen or not _fits(graph, group, tied):
            continue
        axes = Axes(graph)
        if _widened(graph, axes, group):
            widened.append(group.name)
    return widened


def _is_ragged(module: nn.Module) -> bool:
    return isinstance(module, Conv) and 1 < module.groups == module.weight.shape[0] and module.groups % WIDTH > 0


def _fits(graph: Graph, group: Group, tied: frozenset[nn.Parameter]) -> bool:
    """Whether the group's units are all there is along its axes, of plain weights that nothing else uses."""
    for slot in group.slots:
        owner = graph.module.get_submodule(slot.owner)
        tensor = dict(owner.named_parameters(recurse=False)).get(slot.name) if slot.owner else None
        if tensor is None or tensor in tied or tensor.shape[slot.axis] != group.units:
            return False
    return True


def _widened(graph: Graph, axes: Axes, group: Group) -> bool:
    resolved, extra = axes.resolve(), -group.units % WIDTH
    first = group.slots[0]
    start: Tensor = getattr(graph.module.get_submodule(first.owner), first.name)
    roots = resolved.roots[axes.stored[id(start)].dims[first.axis]]

    def within(dim: Any) -> bool:
        return (
            isinstance(dim, np.ndarray) and bool((dim >= 0).all()) and bool(np.isin(resolved.roots[dim], roots).any())
        )

    def count(dim: Dim) -> int:
        return len(dim) + (extra if within(dim) else 0)

    if any(value(count) != value(len) for _, _, value in axes.arguments):
        return False
    if any(within(entry) for target in axes.targets for entry in target.entries):
        return False
    for node, attribute, dim in axes.attributes:
        if within(dim):
            setattr(graph.module.get_submodule(str(node.target)), attribute, count(dim))
    for slot in group.slots:
        owner = graph.module.get_submodule(slot.owner)
        tensor = getattr(owner, slot.name)
        behind = tensor.dim() - 1 - slot.axis
        padded = F.pad(tensor.detach(), (0, 0) * behind + (0, extra))
        setattr(owner, slot.name, nn.Parameter(padded, requires_grad=tensor.requires_grad))
    return True
