"""Which layers suffer from 8 bits: each alone, measured on the outputs; the worst compute in float."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from workers.engine.graph import Graph
from workers.engine.quantization.placement import place
from workers.engine.quantization.ranges import Range
from workers.engine.quantization.simulation import Simulation

ROUNDS = 16
"""The worst layers go in at most this many portions, so that a net of hundreds takes no hours."""


@dataclass
class Sensitivity:
    """`error` with all layers in integers, `error_left` with those of `layers`: relative errors of the outputs."""

    error: float
    layers: frozenset[fx.Node]
    """Layers that compute in integers."""
    error_left: float
    stored: frozenset[fx.Node] = frozenset()
    """Layers that compute in float, from weights stored in 8 bits."""
    alone: dict[fx.Node, float] = field(default_factory=dict)
    """Relative error with one layer in integers; filled where something has to compute in float."""


def keep_worst_float(
    graph: Graph,
    layers: frozenset[fx.Node],
    ranges: Mapping[fx.Node, Range],
    simulation: Simulation,
    bound: float,
    width: int,
    stored_width: int,
) -> Sensitivity:
    """Take the layers that hurt most out of the integer ones until the outputs' relative error is under the bound.

    `width` and `stored_width`: bits of the weights of layers in integers, and of those that are only stored.
    """
    nodes = graph.module.graph

    def error(integer: frozenset[fx.Node], stored: frozenset[fx.Node] = frozenset()) -> float:
        widths = {**dict.fromkeys(integer, width), **dict.fromkeys(stored, stored_width)}
        return simulation.error(place(nodes, integer), ranges, widths)

    first = error(layers)
    result = Sensitivity(first, layers, first)
    if first <= bound or bound >= 1:
        return result
    result.alone = {node: error(frozenset([node])) for node in nodes.nodes if node in layers}
    worst_first = sorted(result.alone, key=lambda node: result.alone[node], reverse=True)
    portion = max(1, math.ceil(len(worst_first) / ROUNDS))
    for start in range(0, len(worst_first), portion):
        result.layers = result.layers - frozenset(worst_first[start : start + portion])
        result.error_left = error(result.layers) if result.layers else 0.0
        if result.error_left <= bound:
            break
    with_stored = error(result.layers, layers - result.layers)
    if with_stored <= bound:
        result.stored, result.error_left = layers - result.layers, with_stored
    return result
