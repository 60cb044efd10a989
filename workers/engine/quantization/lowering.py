"""Rewrites ops into others that ONNX Runtime computes in integers.

A hard sigmoid has no integer kernel, but clip(x + beta / alpha, 0, 1 / alpha) is an integer addition that saturates,
and the factor alpha is only another way to read the result. So a hard swish becomes an integer addition and product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx

from workers.engine.graph import Graph
from workers.engine.ops.activations import clip, hard_sigmoid, hard_swish, swish
from workers.engine.ops.base import Op, Quantization, register

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder


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


@dataclass
class Lowered:
    """What was taken apart: last new node → (function, its keyword arguments, its input)."""

    activations: dict[fx.Node, tuple[Any, dict[str, Any], fx.Node]] = field(default_factory=dict)

    def restore(self, graph: Graph, integer: frozenset[fx.Node]) -> None:
        """Put those back that do not compute in integers after all: in float one op is faster than four."""
        for node, (function, kwargs, source) in self.activations.items():
            if _addition(node) in integer:
                continue
            with graph.module.graph.inserting_before(node):
                original = graph.module.graph.call_function(function, (source,), kwargs)
            original.meta = node.meta
            node.replace_all_uses_with(original)
        graph.module.graph.eliminate_dead_code()
        graph.module.recompile()


def _addition(node: fx.Node) -> fx.Node:
    """The addition of x + beta / alpha that a lowered activation begins with."""
    while node.target is not torch.add:
        node = cast("fx.Node", node.args[1 if node.target is torch.mul else 0])
    return node


def lower(graph: Graph, values: Mapping[fx.Node, Any]) -> Lowered:
    """Rewrite in place; `values` are the results of all nodes on some inputs. The graph answers as before."""
    lowered = Lowered()
    for node in [node for node in graph.module.graph.nodes if node.target is swish]:
        _take_apart_swish(graph, node)
    for node in list(graph.module.graph.nodes):
        if node.target in (hard_swish, hard_sigmoid) and values[node].dtype is torch.float32:
            replaced = _lower_activation(graph, node)
            lowered.activations[replaced] = (node.target, dict(node.kwargs), node.args[0])
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


def _lower_activation(graph: Graph, node: fx.Node) -> fx.Node:
    swish = node.target is hard_swish
    options: dict[str, Any] = {"alpha": 1 / 6, "beta": 0.5} if swish else {"alpha": 0.2, "beta": 0.5, **node.kwargs}
    alpha, beta = float(options["alpha"]), float(options["beta"])
    nodes, source = graph.module.graph, node.args[0]
    name = f"shift_{beta / alpha:g}".replace(".", "_").replace("-", "minus_")
    if not hasattr(graph.module, name):
        device = next((parameter.device for parameter in graph.module.parameters()), None)
        graph.module.register_buffer(name, torch.tensor(beta / alpha, device=device))
    with nodes.inserting_before(node):
        shift = nodes.get_attr(name)
        shifted = nodes.call_function(torch.add, (source, shift))
        bounded = nodes.call_function(clip, (shifted, 0.0, 1 / alpha))
        result = nodes.call_function(gain, (bounded,), {"factor": alpha})
        if swish:
            result = nodes.call_function(torch.mul, (source, result))
    node.replace_all_uses_with(result, propagate_meta=True)
    return result
