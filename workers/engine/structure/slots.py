"""Where units lie in the stored tensors, and which of them lie alike."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.structure.axes import Role, Stored
from workers.engine.structure.labels import Dim, Resolved

FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd and large: numbers multiplied by it and added up tell sequences of numbers apart."""


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


@dataclass(frozen=True, eq=False)
class Place:
    """One axis of a stored tensor, sorted by the roots of its elements."""

    stored: Stored
    axis: int
    roots: Dim
    """Each once, ascending."""
    starts: Dim
    counts: Dim
    order: Dim
    """Positions along the axis, those of the first root first."""

    @classmethod
    def of(cls, stored: Stored, axis: int, resolved: Resolved) -> Place:
        labels = resolved.roots[stored.dims[axis]]
        roots, starts, counts = np.unique(np.sort(labels), return_index=True, return_counts=True)
        return cls(stored, axis, roots, starts, counts, np.argsort(labels, kind="stable"))

    def positions(self, roots: Dim) -> Dim:
        """(roots, elements of each), for roots that have equally many elements."""
        where = np.searchsorted(self.roots, roots)
        count = int(self.counts[where[0]])
        return self.order[self.starts[where][:, None] + np.arange(count)]

    def slot(self, roots: Dim) -> Slot:
        role = self.stored.roles[self.axis] or "scales"
        positions = torch.from_numpy(self.positions(roots))
        return Slot(self.stored.owner, self.stored.name, self.axis, positions, role)


def places(stored: list[Stored], resolved: Resolved) -> list[Place]:
    """Every axis along which there are labels, in the order in which the tensors are used."""
    axes = [
        (tensor, axis) for tensor in stored for axis, dim in enumerate(tensor.dims) if (dim >= 0).all() and dim.size
    ]
    return [Place.of(tensor, axis, resolved) for tensor, axis in axes]


def alike(found: list[Place], resolved: Resolved) -> list[tuple[Dim, list[Place]]]:
    """Roots of units that are made somewhere and lie in the same places, equally often, with these places."""
    count = resolved.roots.size
    signatures, made = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=bool)
    first = np.full(count, len(found), dtype=np.int64)
    position = np.zeros(count, dtype=np.int64)
    for number, place in enumerate(found):
        roots = place.roots
        signatures[roots] = (signatures[roots] + np.uint64(number + 1)) * FACTOR + place.counts.astype(np.uint64)
        made[roots] |= place.stored.roles[place.axis] == "makes"
        new = first[roots] == len(found)
        first[roots[new]], position[roots[new]] = number, place.order[place.starts[new]]
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    units = np.flatnonzero(made)
    for root in units[np.lexsort((position[units], first[units]))].tolist():
        groups[int(signatures[root]), int(resolved.reasons[root])].append(root)
    lying: dict[int, list[Place]] = {roots[0]: [] for roots in groups.values()}
    heads = np.array(sorted(lying), dtype=np.int64)
    for place in found:
        for root in np.intersect1d(place.roots, heads, assume_unique=True).tolist():
            lying[root].append(place)
    return [(np.array(roots, dtype=np.int64), lying[roots[0]]) for roots in groups.values()]
