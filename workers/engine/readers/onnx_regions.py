"""Which ONNX nodes must stay together because other things than tensors of numbers pass between them."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Sequence

from onnx import NodeProto

from workers.engine.errors import InvalidModelError
from workers.engine.onnx_names import outer_names


class Wiring:
    """Who makes and who takes each value, by the positions of nodes in the file."""

    def __init__(self, nodes: Sequence[NodeProto]) -> None:
        self.maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
        self.takers: dict[str, set[int]] = defaultdict(set)
        self.before: list[set[int]] = [set() for _ in nodes]
        self.after: list[set[int]] = [set() for _ in nodes]
        for index, node in enumerate(nodes):
            for name in outer_names(node):
                self.takers[name].add(index)
                if name in self.maker:
                    self.before[index].add(self.maker[name])
                    self.after[self.maker[name]].add(index)

    def regions(self, inseparable: Collection[str]) -> list[frozenset[int]]:
        """Groups of nodes that share these values, each with all that lies between its members."""
        makers = {name: {self.maker[name]} if name in self.maker else set() for name in inseparable}
        merged = _merged([makers[name] | self.takers.get(name, set()) for name in inseparable])
        while True:
            mates = {index: group for group in merged for index in group}
            closed = _merged([self._closure(group, mates) for group in merged])
            if closed == merged:
                return [frozenset(group) for group in merged]
            merged = closed

    def order(self, regions: Collection[frozenset[int]]) -> list[frozenset[int]]:
        """Every node alone or with its region, each after what it needs, in the order of the file where that is free.

        Raises InvalidModelError where there is no such order.
        """
        unit = {index: region for region in regions for index in region}
        units = {index: unit.get(index, frozenset((index,))) for index in range(len(self.before))}
        waits = {
            group: {units[index] for member in group for index in self.before[member]} - {group}
            for group in units.values()
        }
        waiting_for: dict[frozenset[int], list[frozenset[int]]] = defaultdict(list)
        for group, needed in waits.items():
            for other in needed:
                waiting_for[other].append(group)
        ready = [(min(group), group) for group, needed in waits.items() if not needed]
        heapq.heapify(ready)
        ordered = []
        while ready:
            _, group = heapq.heappop(ready)
            ordered.append(group)
            for other in waiting_for[group]:
                waits[other].discard(group)
                if not waits[other]:
                    heapq.heappush(ready, (min(other), other))
        if len(ordered) < len(waits):
            raise InvalidModelError("the nodes of the model need each other's results in a circle")
        return ordered

    def _closure(self, group: set[int], mates: dict[int, set[int]]) -> set[int]:
        """The group and what lies on any way from it to itself; who enters a group leaves it at any of its members."""
        return group | (_reached(group, self.after, mates) & _reached(group, self.before, mates))


def _reached(start: set[int], steps: list[set[int]], mates: dict[int, set[int]]) -> set[int]:
    seen: set[int] = set()
    pending = set(start)
    while pending:
        for index in steps[pending.pop()] - seen:
            entered = mates.get(index, {index}) - seen
            seen |= entered
            pending |= entered
    return seen


def _merged(groups: Sequence[set[int]]) -> list[set[int]]:
    """The same with groups that share a member joined, in the order of their first nodes."""
    joined: list[set[int]] = []
    for group in filter(None, groups):
        apart = []
        together = set(group)
        for other in joined:
            if other & together:
                together |= other
            else:
                apart.append(other)
        joined = [*apart, together]
    return sorted(joined, key=min)
