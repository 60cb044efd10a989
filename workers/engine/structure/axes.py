"""What the op records say about a graph: which dimensions are the same, which stay, and what counts their elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, fx

from workers.engine.constraints import raw_parameter
from workers.engine.graph import Graph
from workers.engine.ops.base import op_of
from workers.engine.structure.labels import ONLY, Dim, Labels
from workers.engine.structure.reshaping import block, carried, common_factors, shares
from workers.engine.structure.sizes import Sizes

Role = Literal["makes", "takes", "scales"]
ROLES: tuple[Role | None, ...] = (None, "scales", "takes", "makes")
"""A tensor with several uses is in each group what it is there most of all."""
Count = Callable[[Dim], int]
"""How many elements of a dimension are left."""


@dataclass(frozen=True)
class Stored:
    """A tensor of the graph with labels on its axes. `owner`: path of the leaf, empty for the graph itself."""

    owner: str
    name: str
    tensor: Tensor
    dims: tuple[Dim, ...]
    roles: tuple[Role | None, ...]
    node: fx.Node


@dataclass(frozen=True)
class Copy:
    """The size of a dimension of the node's first input."""

    axis: int


Entry = Dim | int | Copy | None
"""What an argument of sizes says: a dimension's size, a literal, a copy, or what the model computes."""


@dataclass(frozen=True, eq=False)
class Target:
    """An argument of sizes."""

    node: fx.Node
    position: int
    entries: tuple[Entry, ...]


class Axes(Labels):
    """Dimensions of every value of a graph. Rules read those of the inputs with `of` and `give` those of the output."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.sizes = Sizes(graph)
        self.stored: dict[int, Stored] = {}
        self.targets: list[Target] = []
        self.arguments: list[tuple[fx.Node, int, Callable[[Count], tuple[Any, ...]]]] = []
        self.attributes: list[tuple[fx.Node, str, Dim]] = []
        self.stored_by: dict[fx.Node, Tensor] = {}
        """Constants by the node that reads them."""
        self._module = graph.module
        self._dims: dict[fx.Node, Any] = {}
        for node in graph.module.graph.nodes:
            self._visit(node, graph)

    def shape(self, node: fx.Node) -> Any:
        return self.sizes.shape(node)

    def of(self, node: fx.Node) -> list[Dim]:
        return list(self._dims[node])

    def parts(self, node: fx.Node) -> list[list[Dim]]:
        """The dimensions of each output of a node that has several."""
        return list(self._dims[node])

    def all_of(self, node: fx.Node) -> list[Dim]:
        """Those of every output of a node."""
        return _flat(self._dims[node])

    def give(self, node: fx.Node, dims: Sequence[Dim]) -> None:
        self._dims[node] = self._lasting(dims)

    def give_parts(self, node: fx.Node, parts: Sequence[Sequence[Dim]]) -> None:
        self._dims[node] = [self._lasting(part) for part in parts]

    def freeze(self, node: fx.Node, reason: str) -> None:
        """Everything that goes into a node stays, and what comes out."""
        for source in node.all_input_nodes:
            for dim in self.all_of(source):
                self.keep(dim, reason)
        self._dims[node] = self._staying(self.shape(node), reason)

    def name(self, node: fx.Node) -> str:
        """How reports call a node: the user's name of the layer where it is one."""
        return str(node.meta.get("layer", node.name))

    def numbers(self, argument: Any) -> list[int] | None:
        """What an argument of whole numbers is, if it is the same whatever the sizes of the inputs; else None."""
        if argument is None:
            return None
        if not isinstance(argument, fx.Node):
            return [argument] if isinstance(argument, int) else [int(number) for number in argument]
        stored = self.stored_by.get(argument)
        tensor = self.sizes.settled(argument) if stored is None else stored
        return None if tensor is None else [int(number) for number in tensor.reshape(-1).tolist()]

    def weight(self, node: fx.Node, name: str, roles: Sequence[Role | None]) -> list[Dim]:
        """Dimensions of a leaf's parameter or buffer, the same ones wherever the same tensor is used.

        `roles`, an axis each: what the units along it are to the tensor; None for axes that stay, such as kernels.
        """
        owner: Any = self._module.get_submodule(str(node.target))
        tensor = raw_parameter(owner, name)
        return list(self._store(str(node.target), name, tensor, roles, node).dims)

    def vector(self, node: fx.Node, name: str, dim: Dim, role: Role) -> None:
        """A parameter or buffer, if the leaf has it, has one or several values an element of `dim` on its last axis."""
        tensor = getattr(self._module.get_submodule(str(node.target)), name)
        if tensor is not None:
            own = self.weight(node, name, [*[None] * (tensor.dim() - 1), role])[-1]
            self.same(own, self.repeated(dim, own.size // dim.size))

    def sized_by(
        self,
        node: fx.Node,
        position: int,
        dims: Sequence[Dim],
        *,
        like: fx.Node | None = None,
        chosen: Sequence[int] | None = None,
    ) -> None:
        """Argument `position` says the sizes of `dims`, the node's output, or of the `chosen` of them.

        With `like` it may also say 0 for a dimension that is that input's, and -1 for one that follows from the others.
        """
        target = node.args[position] if position < len(node.args) else None
        places = range(len(dims)) if chosen is None else chosen
        if isinstance(target, fx.Node) and target not in self.stored_by:
            numbers = self.sizes.numbers(target)
            entries = self._entries(node, dims, like, {} if numbers is None else dict(enumerate(numbers.tolist())))
            self.targets.append(Target(node, position, tuple(entries[axis] for axis in places)))
        elif target is not None:
            given = tuple(self.numbers(target) or ())
            sized = [dims[axis] for axis in places]
            self.arguments.append((node, position, lambda count: (_recounted(given, sized, count),)))

    def broadcast(self, operands: Sequence[Sequence[Dim]], shape: Sequence[int]) -> list[Dim]:
        """Dimensions of what comes of these, broadcast against each other to `shape`; those that meet are the same."""
        dims: list[Dim | None] = [None] * len(shape)
        for own in operands:
            for axis, dim in enumerate(own, len(shape) - len(own)):
                known = dims[axis]
                if dim.size != shape[axis]:
                    continue
                if known is None:
                    dims[axis] = dim
                else:
                    self.same(known, dim)
        return [self.stays(1, ONLY) if dim is None else dim for dim in dims]

    def reshaped(self, before: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
        """What becomes of dimensions in a reshape: as few as fit are taken apart and put together, first to last."""
        after: list[Dim] = []
        start = place = 0
        while place < len(shape) or start < len(before):
            stop, end = block([dim.size for dim in before], shape, start, place)
            after += self._regrouped(before[start:stop], shape[place:end])
            start, place = stop, end
        return after

    def _regrouped(self, before: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
        sizes = [dim.size for dim in before]
        common = common_factors(sizes, shape)
        if common is None:
            reason = "it is reshaped in a way that takes no dimension apart"
            for dim in before:
                self.keep(dim, reason)
            return [self.stays(size, reason) for size in shape]
        parts = iter(
            [part for dim, own in zip(before, shares(common, sizes), strict=True) for part in self.factors(dim, own)]
        )
        return [
            self.merged([next(parts) for _ in own]) if own else self.stays(1, ONLY) for own in shares(common, shape)
        ]

    def rewritten(self, node: fx.Node, position: int, value: Callable[[Count], tuple[Any, ...]]) -> None:
        """Arguments from `position` on are what this function makes of the sizes that are left, where they change."""
        self.arguments.append((node, position, value))

    def counted_by(self, node: fx.Node, attribute: str, dim: Dim) -> None:
        """An attribute of the leaf, or of the function, is the size of a dimension."""
        self.attributes.append((node, attribute, dim))

    def _lasting(self, dims: Sequence[Dim]) -> list[Dim]:
        """No dimension may become empty."""
        for dim in dims:
            if dim.size == 1 and dim[0] >= 0:
                self.keep(dim, ONLY)
        return list(dims)

    def _entries(
        self, node: fx.Node, dims: Sequence[Dim], like: fx.Node | None, given: dict[int, int]
    ) -> tuple[Entry, ...]:
        """Open dimensions are copied or, one of them, inferred, where that can be said; else they stay computed."""
        entries: list[Entry] = list(dims)
        changing = [axis for axis in range(len(dims)) if self.sizes.is_open(node, axis)]
        copies = {} if like is None else self._copies(node, like)
        waiting = []
        for axis in changing:
            live = bool((dims[axis] >= 0).any())
            if copies.get(axis) == axis:
                entries[axis] = 0
            elif axis in copies and not live:
                entries[axis] = Copy(copies[axis])
            else:
                waiting.append((not live, given.get(axis) != -1, axis))
        ordered = [axis for _, _, axis in sorted(waiting)]
        if like is not None and ordered:
            entries[ordered.pop(0)] = -1
        for axis in ordered:
            self.keep(dims[axis], f"{self.name(node)} computes its size from the sizes of the inputs")
            entries[axis] = None
        if any(given.get(axis) == -1 for axis in ordered):  # the model infers it, and two cannot be inferred
            for dim in dims:
                self.keep(dim, f"{self.name(node)} computes its shape in a way that cannot be written anew")
            return (None,) * len(dims)
        return tuple(entries)

    def _copies(self, node: fx.Node, like: fx.Node) -> dict[int, int]:
        """Dimensions of a reshape that are dimensions of its input."""
        carried_over = carried(self.shape(like), self.shape(node))
        return {after: before for after, before in carried_over.items() if self.sizes.equal(node, after, like, before)}

    def _store(self, owner: str, name: str, tensor: Tensor, roles: Sequence[Role | None], node: fx.Node) -> Stored:
        known = self.stored.get(id(tensor))
        if known is None:
            dims = tuple(
                self.stays(size, "it is no axis of units") if role is None or size == 1 else self.fresh(size)
                for size, role in zip(tensor.shape, roles, strict=True)
            )
            known = self.stored[id(tensor)] = Stored(owner, name, tensor, dims, tuple(roles), node)
        elif known.roles != tuple(roles):
            strongest = tuple(max(pair, key=ROLES.index) for pair in zip(known.roles, roles, strict=True))
            known = self.stored[id(tensor)] = replace(known, roles=strongest)
        return known

    def _visit(self, node: fx.Node, graph: Graph) -> None:
        if node.op == "placeholder":
            spec = graph.inputs[sum(1 for other in self._dims if other.op == "placeholder")]
            self._dims[node] = self._staying(self.shape(node), f"it meets a dimension of the input {spec.name!r}")
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            holder: Any = self._module.get_submodule(owner)
            self.stored_by[node] = tensor = getattr(holder, name)
            self._dims[node] = list(self._store(owner, name, tensor, ["scales"] * tensor.dim(), node).dims)
        elif node.op == "output":
            for source, spec in zip(node.args[0], graph.outputs, strict=True):  # type: ignore[arg-type]
                for dim in self._dims[source]:
                    self.keep(dim, f"it is part of the output {spec.name!r}")
        else:
            op_of(node).axes(node, self)

    def _staying(self, shape: Any, reason: str) -> list[Any]:
        if shape and isinstance(shape[0], tuple):
            return [self._staying(part, reason) for part in shape]
        return [self.stays(size, reason) for size in shape]


def _flat(dims: Sequence[Any]) -> list[Dim]:
    return [dim for part in dims for dim in (_flat(part) if isinstance(part, list) else [part])]


def _recounted(given: tuple[int, ...], dims: Sequence[Dim], count: Count) -> tuple[int, ...]:
    """Entries that are no sizes stay: 0 and -1 of a reshape, 1 of an expansion."""
    return tuple(count(dim) if size == dim.size else size for size, dim in zip(given, dims, strict=True))
