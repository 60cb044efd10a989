"""Which input features there are: along one dimension of an input, whatever layers read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.dtypes import TORCH_OF_WORD
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.interface.attaching import attach_feed
from workers.engine.interface.edges import edge_of
from workers.engine.interface.exposing import sent_for
from workers.engine.interface.feeds import Select
from workers.engine.structure.groups import Group, find_groups


@dataclass(frozen=True)
class Features:
    """Features of one input that lie alike in the layers that read them."""

    input: str
    axis: int
    leaf: str
    """Path of the `Select` behind the input."""
    group: Group
    positions: Tensor
    """(features, places of one along the axis), int64."""


def find_features(graph: Graph, names: Sequence[str]) -> list[Features]:
    """Put a `Select` of everything behind each input that has features that may go, in place.

    `names`: of the inputs to look at, all where empty. Raises StepError, with all reasons, where there are none.
    """
    known = [spec.name for spec in graph.inputs]
    for name in names:
        if name not in known:
            raise StepError(f"there is no input {name!r}; the model has {', '.join(known)}")
    reasons: list[str] = []
    tried: dict[str, tuple[str, int]] = {}
    for index, spec in enumerate(graph.inputs):
        if names and spec.name not in names:
            continue
        if TORCH_OF_WORD[spec.dtype].is_floating_point:
            tried |= {path: (spec.name, axis) for path, axis in _try_axes(graph, index)}
        else:
            reasons.append(f"{spec.name} holds whole numbers ({spec.dtype}), which are no features")
    found: list[Features] = []
    groups = find_groups(graph) if tried else []
    for path, (name, axis) in tried.items():
        own, why = _along(path, name, axis, groups)
        reasons += [f"{name}, axis {axis}: {reason}" for reason in why]
        if not any(one.input == name for one in found):
            found += own
    remove_feeds(graph, [path for path in tried if not any(one.leaf == path for one in found)])
    if not found:
        raise StepError(f"no input has features that can go: {'; '.join(reasons) or 'none has several along an axis'}")
    return found


def remove_feeds(graph: Graph, paths: Sequence[str]) -> None:
    """Take these off again, in place."""
    for node in list(graph.module.graph.nodes):
        if node.op == "call_module" and node.target in paths:
            node.replace_all_uses_with(node.args[0])
            graph.module.graph.erase_node(node)
            graph.module.delete_submodule(str(node.target))
    graph.module.recompile()


def settle(graph: Graph, features: Sequence[Features]) -> None:
    """Those that are left are chosen: no later step removes more of them."""
    for node in graph.module.graph.nodes:
        feed = edge_of(node, Select)
        if feed is not None and any(one.leaf == node.target for one in features):
            feed.chosen = True


def _try_axes(graph: Graph, index: int) -> list[tuple[str, int]]:
    """Behind the input, for every axis but that of the examples: channels first, then the last."""
    rank = len(graph.inputs[index].shape)
    made = []
    for axis in sorted(range(1, rank), key=lambda axis: (axis != 1, axis != rank - 1, axis)):
        size = sent_for(graph, index).shape[axis]
        if isinstance(size, int) and size > 1:
            call = attach_feed(graph, index, Select(axis, torch.arange(size), size, chosen=False))
            made.append((str(call.target), axis))
    return made


def _along(path: str, name: str, axis: int, groups: Sequence[Group]) -> tuple[list[Features], list[str]]:
    """Features behind this leaf, or why there are none that may go."""
    found, reasons = [], dict[str, None]()
    for group in groups:
        for slot in group.slots:
            if slot.owner != path:
                continue
            read = any(other.role == "takes" for other in group.slots)
            reason = group.frozen or (None if read else "no layer reads it feature by feature")
            if reason is None:
                found.append(Features(name, axis, path, group, slot.positions))
            else:
                reasons[reason] = None
    return found, [] if found else list(reasons)
