"""The units of a group with the weights that belong to each, as importances look at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from workers.engine.graph import Graph
from workers.engine.structure.groups import Group, Slot


@dataclass(frozen=True)
class Units:
    group: Group
    graph: Graph

    def slots(self, *roles: str) -> Iterator[Slot]:
        """Those with real numbers in them, of these roles."""
        for slot in self.group.slots:
            if slot.role in roles and self.used(slot).is_floating_point():
                yield slot

    def owner(self, slot: Slot) -> nn.Module:
        return self.graph.module.get_submodule(slot.owner)

    def used(self, slot: Slot) -> Tensor:
        """The whole tensor of a slot, as the graph uses it: masks applied."""
        tensor: Tensor = getattr(self.owner(slot), slot.name)
        return tensor.detach()

    def watched(self, slot: Slot) -> Tensor:
        """The same tensor, not detached. Inside `parametrize.cached` it is the one that the graph computes with."""
        tensor: Tensor = getattr(self.owner(slot), slot.name)
        return tensor

    def weights(self, *roles: str) -> list[Tensor]:
        """A matrix (units, values of one unit) for each matrix or kernel; biases count where there is nothing else."""
        used = [(self.used(slot), slot) for slot in self.slots(*roles)]
        matrices = [(tensor, slot) for tensor, slot in used if tensor.ndim > 1]
        return [rows_of(tensor, slot) for tensor, slot in matrices or used]


def rows_of(tensor: Tensor, slot: Slot) -> Tensor:
    """(units, values of one unit): what of a tensor, shaped as the slot's, belongs to each unit."""
    positions = slot.positions.to(tensor.device)
    taken = tensor.movedim(slot.axis, 0)[positions.flatten()]
    return taken.reshape(len(positions), -1)
