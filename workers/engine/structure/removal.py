"""Takes elements out of stored tensors, and makes every number that counts them right again."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from workers.engine.constraints import Constraint
from workers.engine.graph import Graph
from workers.engine.ops.indexing import slice_
from workers.engine.ops.shapes import concat, shape
from workers.engine.structure.axes import Axes, Copy, Target
from workers.engine.structure.labels import Dim


def shrink(graph: Graph, axes: Axes, left: NDArray[np.bool_]) -> None:
    """Keep the elements whose labels are `left`, in place."""

    def stays(dim: Dim) -> NDArray[np.bool_]:
        return np.where(dim >= 0, left[np.maximum(dim, 0)], True) if left.size else np.ones(dim.size, dtype=bool)

    def count(dim: Dim) -> int:
        return int(stays(dim).sum())

    changed = {node for node in graph.module.graph.nodes if _lost(axes, node, stays)}
    holders = _holders(graph.module)
    for key, stored in axes.stored.items():
        for axis, dim in enumerate(stored.dims):
            if not stays(dim).all():
                holders[key] = _narrowed(holders[key], axis, torch.from_numpy(np.flatnonzero(stays(dim))))
    for node, attribute, dim in axes.attributes:
        if node.op == "call_module":
            setattr(graph.module.get_submodule(str(node.target)), attribute, count(dim))
        else:
            node.update_kwarg(attribute, count(dim))
    for node, position, value in axes.arguments:
        if value(count) != value(len):
            node.args = (*node.args[:position], *value(count), *node.args[position + len(value(count)) :])
    stale = _stale(axes, changed)
    for target in axes.targets:
        if target.node in changed or target.node.args[target.position] in stale:
            _retarget(graph.module, target, count)
    _settle(graph.module, axes, stale)
    graph.module.graph.eliminate_dead_code()
    graph.module.recompile()


def _lost(axes: Axes, node: fx.Node, stays: Any) -> bool:
    return node.op != "output" and any(not stays(dim).all() for dim in axes.all_of(node))


Holder = tuple[nn.Module, str]


def _holders(module: nn.Module) -> dict[int, list[Holder]]:
    """Where each parameter and buffer hangs: tied ones at several places."""
    holders: dict[int, list[Holder]] = defaultdict(list)
    for owner in module.modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):  # noqa: SLF001 (named_* leave ties out)
            if tensor is not None:
                holders[id(tensor)].append((owner, name))
    return holders


def _narrowed(places: list[Holder], axis: int, index: Tensor) -> list[Holder]:
    owner, name = places[0]
    tensor: Any = getattr(owner, name)
    data = tensor.detach().index_select(axis, index.to(tensor.device)).contiguous()
    new = nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    for owner, name in places:
        setattr(owner, name, new)
        if isinstance(owner, ParametrizationList):
            for constraint in owner:
                if isinstance(constraint, Constraint):
                    constraint.narrow(axis, index.to(tensor.device))
    return places


def _stale(axes: Axes, changed: set[fx.Node]) -> set[fx.Node]:
    """Nodes that count sizes, of which some are other ones now."""
    stale: set[fx.Node] = set()
    for node in changed | axes.sizes.counted:
        stale.update(user for user in node.users if node in changed and user in axes.sizes.counted)
    waiting = list(stale)
    while waiting:
        following = [user for user in waiting.pop().users if user in axes.sizes.counted and user not in stale]
        stale.update(following)
        waiting += following
    return stale


def _retarget(module: fx.GraphModule, target: Target, count: Any) -> None:
    """Replace what an argument of sizes computed by the sizes that are known; what is open is still computed."""
    node, computed = target.node, target.node.args[target.position]
    known = [count(entry) if isinstance(entry, np.ndarray) else entry for entry in target.entries]
    if all(entry is None for entry in known):
        return
    if all(isinstance(entry, int) for entry in known):
        sizes: Any = tuple(known)
    else:
        with module.graph.inserting_before(node):
            parts = [_entry(module, node, computed, place, entry) for place, entry in enumerate(known)]
            sizes = module.graph.call_function(concat, tuple(parts), {"axis": 0})
    node.update_arg(target.position, sizes)
    if "allowzero" in node.kwargs:
        node.update_kwarg("allowzero", 0)


def _entry(module: fx.GraphModule, node: fx.Node, computed: Any, place: int, entry: int | Copy | None) -> fx.Node:
    """One size as a value of the graph."""
    if isinstance(entry, int):
        return _constant(module, torch.tensor([entry]))
    if isinstance(entry, Copy):
        return module.graph.call_function(shape, (node.args[0],), {"start": entry.axis, "end": entry.axis + 1})
    return module.graph.call_function(slice_, (computed, (place,), (place + 1,), (0,), (1,)))


def _settle(module: fx.GraphModule, axes: Axes, stale: set[fx.Node]) -> None:
    """Numbers that the model computes from sizes, beside shapes, are those that it was trained with."""
    for node in stale:
        numbers = axes.sizes.settled(node)
        if numbers is not None and any(user not in stale for user in node.users):
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(_constant(module, numbers))


def _constant(module: fx.GraphModule, value: Tensor) -> fx.Node:
    number = sum(1 for name in module._buffers if name.startswith("sizes_"))  # noqa: SLF001 (torch's own record)
    module.register_buffer(f"sizes_{number}", value)
    node = module.graph.get_attr(f"sizes_{number}")
    node.meta["name"] = f"sizes_{number}"
    return node
