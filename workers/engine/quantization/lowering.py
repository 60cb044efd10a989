"""Rewrites ops into others that ONNX Runtime computes in integers.

A hard sigmoid has no integer kernel, but clip(alpha x + beta, 0, 1) needs none: where x is on a grid that begins at
-beta / alpha, its integers from zero on are the result's, read with another scale. They are cut off at 1 / alpha, which
takes no time. So a hard swish becomes an integer product, and the gate of a squeeze-and-excite block costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx

from workers.engine.graph import Graph
from workers.engine.ops.activations import hard_sigmoid, hard_swish, swish
from workers.engine.ops.axis_rules import elementwise
from workers.engine.ops.base import Op, Quantization, register, source_of
from workers.engine.quantization.nodes import module_of
from workers.engine.quantization.ranges import LEVELS, Range

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder

SWISH_GATE: dict[str, Any] = {"alpha": 1 / 6, "beta": 0.5}


def gain(x: Tensor, *, factor: float) -> Tensor:
    """A factor that costs nothing where the value before it is quantized: its integers are read with another scale."""
    return x * factor


@register
class Gain(Op):
    name = "Gain"
    domain = "modelpress"
    functions = (gain,)
    quantization = Quantization(fused=True)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        onnx.emit(node, "Mul", (node.args[0], node.kwargs["factor"]))


def gate(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """A hard sigmoid of a value on an anchored grid."""
    return hard_sigmoid(x, alpha=alpha, beta=beta)


@register
class Gate(Op):
    name = "Gate"
    domain = "modelpress"
    functions = (gate,)
    axes = elementwise

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        source = source_of(node)
        leaf, alpha = module_of(source), float(cast("float", node.kwargs["alpha"]))
        integers, top = onnx.integers[source], round(1 / (alpha * float(leaf.scale)))
        if top < LEVELS - 1:
            bounds = [torch.tensor(bound, dtype=torch.uint8) for bound in (0, top)]
            limits = [
                onnx.initializer(f"{node.name}_{name}", b) for name, b in zip(("low", "high"), bounds, strict=True)
            ]
            integers = onnx.node("Clip", (integers, *limits), f"{node.name}_integers")
        scale = onnx.initializer(f"{node.name}_scale", leaf.scale * alpha)
        zero = onnx.initializer(f"{node.name}_zero_point", torch.tensor(0, dtype=torch.uint8))
        onnx.emit(node, "DequantizeLinear", (integers, scale, zero))


def gate_options(node: fx.Node) -> dict[str, float]:
    """Of a hard sigmoid."""
    given = {name: float(cast("float", value)) for name, value in node.kwargs.items()}
    return {"alpha": 0.2, "beta": 0.5} | given


def anchored(value: fx.Node, bounds: Range, integer: frozenset[fx.Node]) -> Range:
    """The range, or where a gate reads the value, one whose grid begins where the gate opens, on a step of the grid."""
    gates = [user for user in value.users if user in integer and user.target is hard_sigmoid]
    if not gates:
        return bounds
    options = gate_options(gates[0])
    opens, high = options["beta"] / options["alpha"], bounds.high
    if len(gates) == len(value.users):
        high = min(high, (1 - options["beta"]) / options["alpha"])
    below = round((LEVELS - 1) * opens / (opens + max(high, 0.0)))
    below = min(max(below, 1), LEVELS // 2)
    return Range(-opens, opens * (LEVELS - 1 - below) / below)


@dataclass
class Lowered:
    """What was taken apart: last new node → its input."""

    swishes: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def restore(self, graph: Graph, integer: frozenset[fx.Node]) -> None:
        """Put those back that do not compute in integers after all: in float one op is faster than two."""
        for node, source in self.swishes.items():
            if node not in integer:
                node.target, node.args = hard_swish, (source,)
        graph.module.graph.eliminate_dead_code()
        graph.module.recompile()


def lower(graph: Graph, values: Mapping[fx.Node, Any]) -> Lowered:
    """Rewrite in place; `values` are the results of all nodes on some inputs. The graph answers as before."""
    lowered = Lowered()
    for node in list(graph.module.graph.nodes):
        if node.target is swish:
            _take_apart_swish(graph, node)
        elif node.target is hard_swish and values[node].dtype is torch.float32:
            lowered.swishes[_take_apart(graph, node)] = source_of(node)
            graph.module.graph.erase_node(node)
    graph.module.recompile()
    return lowered


def _take_apart_swish(graph: Graph, node: fx.Node) -> None:
    """x × sigmoid(alpha x): both have integer kernels, the whole has none."""
    nodes, source, alpha = graph.module.graph, node.args[0], float(cast("float", node.kwargs["alpha"]))
    with nodes.inserting_before(node):
        steep = source if alpha == 1 else nodes.call_function(gain, (source,), {"factor": alpha})
        gate = nodes.call_function(torch.sigmoid, (steep,))
        gated = nodes.call_function(torch.mul, (source, gate))
    node.replace_all_uses_with(gated, propagate_meta=True)
    nodes.erase_node(node)


def _take_apart(graph: Graph, node: fx.Node) -> fx.Node:
    nodes, source = graph.module.graph, source_of(node)
    with nodes.inserting_before(node):
        product = nodes.call_function(torch.mul, (source, nodes.call_function(hard_sigmoid, (source,), SWISH_GATE)))
    node.replace_all_uses_with(product, propagate_meta=True)
    return product
