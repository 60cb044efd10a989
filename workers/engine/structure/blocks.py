"""Residual blocks: the parts f of x + f(x), which a model can do without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import fx

from workers.engine.graph import Graph
from workers.engine.ops.base import op_of
from workers.engine.shapes import propagate

SUMS = ("Add", "Sum")


@dataclass(frozen=True)
class Block:
    name: str
    """What the names of its layers have in common where no other layer has it, else its first and its last layer."""
    layers: tuple[str, ...]
    """Names of the layers that go with it."""
    sum: fx.Node
    skip: fx.Node
    """x; it takes the place of the sum where the block is dropped."""


def find_blocks(graph: Graph) -> list[Block]:
    """All blocks with a layer in them, in the order of execution; one that lies inside of another is a block too.

    Raises InvalidModelError where the model does not run on made-up inputs.
    """
    propagate(graph)
    layers = {layer.node.target: layer.name for layer in graph.layers()}
    calls = {node: layers[node.target] for node in graph.module.graph.nodes if node.target in layers}
    before = _ancestors(graph.module.graph)
    found = []
    for node in graph.module.graph.nodes:
        skip = _skip(node, before)
        if skip is not None:
            inside = [calls[other] for other in calls if other in _only_for(node, skip, before)]
            if inside:
                found.append(Block(_name(inside, list(layers.values())), tuple(dict.fromkeys(inside)), node, skip))
    return _numbered(found)


@contextmanager
def without(graph: Graph, block: Block) -> Iterator[None]:
    """The graph as if the block were gone."""
    users = [(user, user.args, user.kwargs) for user in block.sum.users]
    for user, _, _ in users:
        user.replace_input_with(block.sum, block.skip)
    graph.module.recompile()
    try:
        yield
    finally:
        for user, args, kwargs in users:
            user.args, user.kwargs = args, kwargs
        graph.module.recompile()


def drop(graph: Graph, block: Block) -> None:
    """Take the block out for good, in place, with everything that only it used."""
    block.sum.replace_all_uses_with(block.skip)
    module = graph.module
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for held in (module._parameters, module._buffers):  # noqa: SLF001 (torch's own record; delattr on a copy of its names)
        for name in [name for name in held if name not in used]:
            delattr(module, name)
    module.recompile()


def _ancestors(graph: fx.Graph) -> dict[fx.Node, frozenset[fx.Node]]:
    """All that each node is computed from."""
    found: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        found[node] = frozenset(inputs).union(*(found[source] for source in inputs))
    return found


def _skip(node: fx.Node, before: dict[fx.Node, frozenset[fx.Node]]) -> fx.Node | None:
    """The operand that the other one is computed from, where all shapes are the same."""
    if node.op != "call_function" or op_of(node).name not in SUMS:
        return None
    if len(node.args) != 2 or not all(isinstance(operand, fx.Node) for operand in node.args):
        return None
    first, second = node.all_input_nodes if len(node.all_input_nodes) == 2 else (None, None)
    if first is None or second is None:
        return None
    if not first.meta["shape"] == second.meta["shape"] == node.meta["shape"]:
        return None
    if first in before[second]:
        return first
    return second if second in before[first] else None


def _only_for(node: fx.Node, skip: fx.Node, before: dict[fx.Node, frozenset[fx.Node]]) -> set[fx.Node]:
    """What nothing needs once the skip takes the node's place."""
    gone = {node}
    for other in reversed(list(before)):
        if other in before[node] and other is not skip and other.users and all(user in gone for user in other.users):
            gone.add(other)
    return gone


def _name(inside: list[str], every: list[str]) -> str:
    first = inside[0].split(".")
    for length in range(len(first), 0, -1):
        prefix = ".".join(first[:length])
        if _below(prefix, inside) == len(inside):
            if _below(prefix, every) == len(set(inside)):
                return prefix
            break
    return inside[0] if len(set(inside)) == 1 else f"{inside[0]} to {inside[-1]}"


def _below(prefix: str, names: list[str]) -> int:
    return sum(name == prefix or name.startswith(f"{prefix}.") for name in names)


def _numbered(blocks: list[Block]) -> list[Block]:
    """Blocks that share their layers have the same name: a number tells them apart."""
    seen: dict[str, int] = {}
    named = []
    for block in blocks:
        seen[block.name] = count = seen.get(block.name, 0) + 1
        name = block.name if count == 1 else f"{block.name}#{count}"
        named.append(Block(name, block.layers, block.sum, block.skip))
    return named
