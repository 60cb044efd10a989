"""Units that are removed together, wherever they appear in the graph's tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workers.engine.constraints import raw_parameter
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.structure.axes import Axes, Stored
from workers.engine.structure.labels import HEADS, ONLY, Dim, Resolved
from workers.engine.structure.removal import shrink
from workers.engine.structure.slots import Place, Slot, alike, places

__all__ = ["Group", "Kind", "Slot", "find_groups", "remove_units", "zero_units"]

Kind = Literal["channels", "neurons", "heads", "hidden units"]


@dataclass(frozen=True)
class Group:
    name: str
    """The user's name of the first layer that makes the units; with a number where it makes several groups."""
    layers: tuple[str, ...]
    """Names of all layers with a slot that makes units, as the user's selections see them."""
    kind: Kind
    units: int
    slots: tuple[Slot, ...]
    frozen: str | None = None
    """Why none of its units may go; None where they may."""


def find_groups(graph: Graph) -> list[Group]:
    """Every group of the graph, frozen ones too, in the order of execution."""
    return [group for group, _ in _found(Axes(graph))]


def remove_units(graph: Graph, keep: Mapping[str, Tensor]) -> None:
    """Keep only these units, in place. `keep`: group name → bool (units,). Masks and other constraints shrink along.

    Raises StepError where a group is frozen, unknown, or would keep nothing.
    """
    axes = Axes(graph)
    resolved = axes.resolve()
    left = np.ones(resolved.roots.size, dtype=bool)
    for group, roots in _chosen(_found(axes, resolved), keep):
        left[roots[~keep[group.name].cpu().numpy()]] = False
    shrink(graph, axes, left[resolved.roots])


def zero_units(graph: Graph, keep: Mapping[str, Tensor]) -> None:
    """The same units made zero where they are made and where they are taken: what a pruned graph must equal."""
    for group, _ in _chosen(_found(Axes(graph)), keep):
        gone = ~keep[group.name].cpu()
        for slot in group.slots:
            owner = graph.module.get_submodule(slot.owner)
            if slot.role == "scales" and (not slot.owner or slot.name not in dict(owner.named_parameters())):
                continue
            tensor = raw_parameter(owner, slot.name).data
            tensor.index_fill_(slot.axis, slot.positions[gone].flatten().to(tensor.device), 0)


def _chosen(found: list[tuple[Group, Dim]], keep: Mapping[str, Tensor]) -> list[tuple[Group, Dim]]:
    """The groups that lose units. Raises StepError where that cannot be done."""
    groups = {group.name: (group, roots) for group, roots in found}
    for name, units in keep.items():
        if name not in groups:
            raise StepError(
                f"there is no group of units {name!r}; the analysis of the model lists those that there are"
            )
        group = groups[name][0]
        if units.shape != (group.units,) or units.dtype != torch.bool:
            raise StepError(f"{name}: {group.units} booleans say which units to keep, not {list(units.shape)}")
        if group.frozen is not None and not bool(units.all()):
            raise StepError(f"no unit of {name} can be removed: {group.frozen}")
        if not bool(units.any()):
            raise StepError(f"{name} would be left without units; keep at least one")
    return [groups[name] for name, units in keep.items() if not bool(units.all())]


def _found(axes: Axes, resolved: Resolved | None = None) -> list[tuple[Group, Dim]]:
    """Groups with the root label of each unit."""
    resolved = resolved or axes.resolve()
    named: Counter[str] = Counter()
    found = []
    for roots, lying in alike(places(list(axes.stored.values()), resolved), resolved):
        group = _group(axes, resolved, roots, lying)
        named[group.name] += 1
        if named[group.name] > 1:
            group = replace(group, name=f"{group.name}#{named[group.name]}")
        found.append((group, roots))
    return found


def _group(axes: Axes, resolved: Resolved, roots: Dim, lying: Sequence[Place]) -> Group:
    makers = [place.stored for place in lying if place.stored.roles[place.axis] == "makes"]
    layers = dict.fromkeys(axes.name(stored.node) for stored in makers if stored.tensor.dim() > 1)
    layers = layers or dict.fromkeys(axes.name(stored.node) for stored in makers)
    reason = int(resolved.reasons[roots[0]])
    heads = bool((resolved.preferences[roots] >= HEADS).any())
    return Group(
        name=next(iter(layers)),
        layers=tuple(layers),
        kind=_kind(makers[0], heads),
        units=len(roots),
        slots=tuple(place.slot(roots) for place in lying),
        frozen=resolved.texts[reason] if reason >= 0 else ONLY if len(roots) == 1 else None,
    )


def _kind(maker: Stored, heads: bool) -> Kind:
    if heads:
        return "heads"
    if maker.name == "weight_ih":
        return "hidden units"
    return "channels" if maker.tensor.dim() > 2 else "neurons"
