"""Units that are removed together, wherever they appear in the graph's tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workers.engine.constraints import raw_parameter
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.structure.axes import Axes, Role, Stored
from workers.engine.structure.labels import HEADS, ONLY, Dim, Resolved
from workers.engine.structure.removal import shrink

Kind = Literal["channels", "neurons", "heads", "hidden units"]


@dataclass(frozen=True)
class Slot:
    """Where a group's units lie in one stored tensor: unit u is `positions[u]` along `axis`."""

    owner: str
    """Path of the leaf, or empty for a parameter or buffer of the graph itself."""
    name: str
    """Parameter or buffer of the owner."""
    axis: int
    positions: Tensor
    """(units, elements of one unit along the axis), int64."""
    role: Role
    """Rows of a weight that make the units, columns of a later weight that take them, or a vector along them."""


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
            raw_parameter(owner, slot.name).data.index_fill_(slot.axis, slot.positions[gone].flatten(), 0)


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
    places = _places(axes, resolved)
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for root, lying in places.items():
        signature = tuple((key, axis, len(where)) for (key, axis), where in lying.items())
        reason = int(resolved.reasons[root])
        if any(axes.stored[key].roles[axis] == "makes" for key, axis in lying):
            alike[signature, reason].append(root)
    found = [_group(axes, resolved, roots, places) for roots in alike.values()]
    named: dict[str, int] = defaultdict(int)
    numbered = []
    for group, roots in found:
        named[group.name] += 1
        count = named[group.name]
        name = group.name if count == 1 else f"{group.name}#{count}"
        numbered.append((Group(name, group.layers, group.kind, group.units, group.slots, group.frozen), roots))
    return numbered


def _places(axes: Axes, resolved: Resolved) -> dict[int, dict[tuple[int, int], list[int]]]:
    """Per root label: where it lies along which axes of which stored tensors."""
    places: dict[int, dict[tuple[int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, stored in axes.stored.items():
        for axis, dim in enumerate(stored.dims):
            if (dim < 0).all():
                continue
            for position, root in enumerate(resolved.roots[dim].tolist()):
                places[root][key, axis].append(position)
    return places


def _group(
    axes: Axes, resolved: Resolved, roots: list[int], places: dict[int, dict[tuple[int, int], list[int]]]
) -> tuple[Group, Dim]:
    slots = tuple(
        Slot(
            stored.owner,
            stored.name,
            axis,
            torch.tensor([places[root][key, axis] for root in roots]),
            stored.roles[axis] or "scales",
        )
        for key, axis in places[roots[0]]
        for stored in (axes.stored[key],)
    )
    makers = [axes.stored[key] for key, axis in places[roots[0]] if axes.stored[key].roles[axis] == "makes"]
    layers = tuple(dict.fromkeys(axes.name(stored.node) for stored in makers if stored.tensor.dim() > 1))
    layers = layers or tuple(dict.fromkeys(axes.name(stored.node) for stored in makers))
    reason = int(resolved.reasons[roots[0]])
    frozen = resolved.texts[reason] if reason >= 0 else ONLY if len(roots) == 1 else None
    kind = _kind(makers[0], bool((resolved.preferences[roots] >= HEADS).any()))
    return Group(layers[0], layers, kind, len(roots), slots, frozen), np.array(roots, dtype=np.int64)


def _kind(maker: Stored, heads: bool) -> Kind:
    if heads:
        return "heads"
    if maker.name == "weight_ih":
        return "hidden units"
    return "channels" if maker.tensor.dim() > 2 else "neurons"
