"""Which layers suffer from 8 bits: each alone, measured on the outputs; the worst stay float."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from workers.engine.quantization.placement import place
from workers.engine.quantization.ranges import Range
from workers.engine.quantization.simulation import Simulation

ROUNDS = 16
"""The worst layers go in at most this many portions, so that a net of hundreds takes no hours."""


@dataclass
class Sensitivity:
    error: float
    """Relative error of the outputs with all layers quantized."""
    layers: frozenset[fx.Node]
    """Layers that are quantized."""
    error_left: float
    alone: dict[fx.Node, float] = field(default_factory=dict)
    """Relative error with one layer quantized; filled where something had to stay float."""


def keep_worst_float(
    graph: fx.Graph, layers: frozenset[fx.Node], ranges: Mapping[fx.Node, Range], simulation: Simulation, bound: float
) -> Sensitivity:
    """Take the layers that hurt most out of the integer ones until the outputs' relative error is under the bound."""

    def error(quantized: frozenset[fx.Node]) -> float:
        return simulation.error(place(graph, quantized), ranges, quantized)

    first = error(layers)
    result = Sensitivity(first, layers, first)
    if first <= bound or bound >= 1:
        return result
    result.alone = {node: error(frozenset([node])) for node in graph.nodes if node in layers}
    worst_first = sorted(result.alone, key=lambda node: result.alone[node], reverse=True)
    portion = max(1, math.ceil(len(worst_first) / ROUNDS))
    for start in range(0, len(worst_first), portion):
        result.layers = result.layers - frozenset(worst_first[start : start + portion])
        result.error_left = error(result.layers) if result.layers else 0.0
        if result.error_left <= bound:
            break
    return result
