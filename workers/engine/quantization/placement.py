"""Which values of a graph are put on an integer grid, derived from the op records alone.

Integers pay only where the runtime finds a quantized value on every side of an op. So the layers with weights come
first, ops without weights join where all they read comes from integer ops, activations that the runtime folds into the
op before are looked through, and ops that only move values share the range of what they move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from workers.engine.ops.base import Quantization, op_of, source_of
from workers.engine.transforms.attention import find_attention


@dataclass(frozen=True)
class Point:
    """A value that becomes 8-bit, with the range that was found for `source` (itself, or what was moved here)."""

    value: fx.Node
    source: fx.Node
    users: frozenset[fx.Node] | None
    """Who reads the 8-bit value; None: everyone, because the runtime has only integers at this place."""


@dataclass(frozen=True)
class Placement:
    integer: frozenset[fx.Node]
    """The nodes that the runtime computes in integers."""
    points: dict[fx.Node, Point]

    @property
    def sources(self) -> list[fx.Node]:
        """The values whose ranges have to be known, in the order of execution."""
        return list(dict.fromkeys(point.source for point in self.points.values()))


def trait_of(node: fx.Node) -> Quantization | None:
    return op_of(node).quantization if node.op in ("call_module", "call_function") else None


def quantized_inputs(node: fx.Node, trait: Quantization) -> Iterator[fx.Node]:
    """The values among a node's arguments that the trait wants in 8 bits."""
    positions = range(len(node.args)) if trait.inputs is None else trait.inputs
    for position in positions:
        argument = node.args[position] if position < len(node.args) else None
        for value in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(value, fx.Node):
                yield value


def _passes(node: fx.Node) -> bool:
    trait = trait_of(node)
    return trait is not None and trait.passes


def _fused(node: fx.Node) -> bool:
    trait = trait_of(node)
    return trait is not None and trait.fused


def _rereads(node: fx.Node) -> bool:
    trait = trait_of(node)
    return trait is not None and trait.rereads


def _producer(value: fx.Node) -> fx.Node:
    """The op whose accumulators the value comes from: fused activations are looked through."""
    while _fused(value):
        value = source_of(value)
    return value


def origin_of(value: fx.Node) -> fx.Node:
    """The op that computes a value: fused activations and ops that only move values are looked through."""
    while _fused(value) or _passes(value):
        value = source_of(value)
    return value


def after_fused(node: fx.Node) -> fx.Node:
    """The last of the activations that the runtime folds into the node, or the node itself."""
    while len(node.users) == 1 and _fused(next(iter(node.users))):
        node = next(iter(node.users))
    return node


def place(graph: fx.Graph, layers: frozenset[fx.Node]) -> Placement:
    """Where 8-bit values stand when these layers, and what can follow them, compute in integers.

    Scores of an attention stay float once a mask comes to them: its numbers would leave them no step of the grid.
    """
    integer = set(layers)
    scores = {node for attention in find_attention(graph) for node in attention.scores}
    for node in graph.nodes:
        trait = trait_of(node)
        if trait is None or trait.passes or trait.fused or (trait.weights and node.op == "call_module"):
            continue
        if node in scores and node.target is not torch.matmul:
            continue
        if trait.rereads and _producer(source_of(node)) not in integer:
            continue
        origins = [origin_of(value) for value in quantized_inputs(node, trait)]
        if any(origin in integer for origin in origins) and all(
            origin in integer or origin.op == "get_attr" for origin in origins
        ):
            integer.add(node)
    return Placement(frozenset(integer), _points(graph, integer))


def _points(graph: fx.Graph, integer: set[fx.Node]) -> dict[fx.Node, Point]:
    readers: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        trait = trait_of(node) if node in integer else None
        if trait is None:
            continue
        for value in quantized_inputs(node, trait):
            reader = node
            if _rereads(value) and value in integer:
                continue
            while _passes(value):
                readers.setdefault(value, set()).add(reader)
                value, reader = source_of(value), value  # noqa: PLW2901 (the chain is walked upwards)
            readers.setdefault(value, set()).add(reader)
        if trait.output and not trait.float_output:
            readers.setdefault(after_fused(node), set())
    points = {}
    for value in graph.nodes:
        if value in readers:
            source = value
            while _passes(source):
                source = source_of(source)
            everyone = _producer(source) in integer
            points[value] = Point(value, source, None if everyone else frozenset(readers[value]))
    return points
