"""Names inside ONNX nodes and their subgraphs: what they take from outside, and how they change places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper


def op_name(node: NodeProto) -> str:
    """The op, with its domain where it is not ONNX's own."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies and branches of a node, not those inside of them."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def every_graph(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all that lie in it, at any depth."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from every_graph(inner)


def every_node(node: NodeProto) -> Iterator[NodeProto]:
    """The node and all that lie in its subgraphs, at any depth."""
    yield node
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from every_node(inner)


def outer_names(node: NodeProto) -> Iterator[str]:
    """What a node takes: its inputs, then what its subgraphs use without making it. Names may come twice."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        yield from _captured(graph)


def _captured(graph: GraphProto) -> Iterator[str]:
    known = {info.name for info in graph.input}
    known.update(tensor.name for tensor in graph.initializer)
    known.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (name for name in outer_names(node) if name not in known)
        known.update(node.output)
    yield from (info.name for info in graph.output if info.name not in known)


def free_name(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; it is taken from now on."""
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique)
    return unique


Hoist = Callable[[TensorProto, str], str | None]
"""Of a tensor in a subgraph and its name there: the name outside under which it is found from now on, if it moves."""


def stays(tensor: TensorProto, name: str) -> None:
    """No stored tensor leaves its subgraph."""


class Relabelling:
    """Copies nodes under other names; what a subgraph makes gets names that are nowhere else.

    `fresh` gives a free name near the one it is asked for. Documentation of nodes, in which exporters leave paths of
    their machines, is left out.
    """

    def __init__(self, fresh: Callable[[str], str], hoist: Hoist = stays) -> None:
        self._fresh = fresh
        self._hoist = hoist

    def node(self, node: NodeProto, names: Mapping[str, str]) -> NodeProto:
        """A copy; names that are not in `names` stay as they are."""
        copy = NodeProto()
        copy.CopyFrom(node)
        self._rename(copy, names)
        copy.output[:] = [names.get(name, name) for name in copy.output]
        return copy

    def branch(self, graph: GraphProto) -> GraphProto:
        """A copy of a subgraph with fresh names for all that it makes; its outputs are in the order of the original."""
        copy = GraphProto()
        copy.CopyFrom(graph)
        self._rename_graph(copy, {})
        return copy

    def _rename(self, node: NodeProto, names: Mapping[str, str]) -> None:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        node.input[:] = [names.get(name, name) for name in node.input]
        for graph in subgraphs(node):
            self._rename_graph(graph, names)

    def _rename_graph(self, graph: GraphProto, outer: Mapping[str, str]) -> None:
        scope = _Scope(dict(outer), self._fresh)
        for told in ("value_info", "quantization_annotation", "metadata_props", "doc_string"):
            graph.ClearField(told)
        for info in graph.input:
            info.name = scope.define(info.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = scope.define(sparse.values.name)
        hoisted = [index for index, tensor in enumerate(graph.initializer) if self._moves(tensor, tensor.name, scope)]
        for index in reversed(hoisted):
            del graph.initializer[index]
        for tensor in graph.initializer:
            tensor.name = scope.define(tensor.name)
        hoisted = []
        for index, node in enumerate(graph.node):
            if _holds_a_tensor(node) and self._moves(node.attribute[0].t, node.output[0], scope):
                hoisted.append(index)
                continue
            self._rename(node, scope.names)
            node.output[:] = [scope.define(name) for name in node.output]
        for index in reversed(hoisted):
            del graph.node[index]
        for info in graph.output:
            made = scope.names.get(info.name, info.name)
            if info.name not in scope.inside:  # what comes from outside does not leave as it is
                through = self._fresh(made)
                graph.node.append(helper.make_node("Identity", [made], [through], name=through))
                made = through
            info.name = made

    def _moves(self, tensor: TensorProto, name: str, scope: _Scope) -> bool:
        """Whether a stored tensor leaves the subgraph; it has a name outside then."""
        outside = None if name in scope.inside else self._hoist(tensor, name)
        if outside is not None:
            scope.names[name] = outside
        return outside is not None


@dataclass
class _Scope:
    names: dict[str, str]
    """Old name → new name of all that can be seen."""
    fresh: Callable[[str], str]
    inside: set[str] = field(default_factory=set)
    """Old names of what is made here."""

    def define(self, name: str) -> str:
        """The new name of something made here; inputs with a default are defined twice."""
        if not name:
            return ""
        if name not in self.inside:
            self.names[name] = self.fresh(name)
            self.inside.add(name)
        return self.names[name]


def _holds_a_tensor(node: NodeProto) -> bool:
    """Whether this is a `Constant` with a plain tensor."""
    return (
        node.op_type == "Constant"
        and node.domain in ("", "ai.onnx")
        and len(node.attribute) == 1
        and node.attribute[0].type == AttributeProto.TENSOR
        and len(node.output) == 1
    )
