"""Puts a placement into a graph: fake-quantize leaves on the values, grids on the weights and biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from workers.engine.constraints import constrain
from workers.engine.graph import Graph
from workers.engine.ops.activations import hard_sigmoid
from workers.engine.ops.base import source_of
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.grid import BiasGrid, fitted, grid_of
from workers.engine.quantization.lowering import gain, gate, gate_options
from workers.engine.quantization.nodes import calls_of, module_of
from workers.engine.quantization.placement import Placement, Point, trait_of
from workers.engine.quantization.ranges import LEVELS, Range

BIAS_HEADROOM = 2.0**30
"""Biases stay below this many steps, half of what int32 holds."""


@dataclass(frozen=True)
class Quantized:
    """The quantized copy of a float graph, and which node became which."""

    graph: Graph
    twin: dict[fx.Node, fx.Node]
    layers: tuple[fx.Node, ...]
    """The integer layers, in the quantized graph."""


def insert(
    graph: Graph, placement: Placement, ranges: Mapping[fx.Node, Range], layers: frozenset[fx.Node], width: int
) -> Quantized:
    """Quantize a copy of the graph. Biases are left float, for what may correct them, until `grid_biases`."""
    copied = graph.copy()
    twin = dict(zip(graph.module.graph.nodes, copied.module.graph.nodes, strict=True))
    leaves: dict[fx.Node, str] = {}
    needless: list[fx.Node] = []
    last_input = [node for node in copied.module.graph.nodes if node.op == "placeholder"][-1]
    for value, point in placement.points.items():
        if point.source not in leaves:
            leaves[point.source] = f"quantize_{len(leaves)}"
            factor = gain_of(point.source)
            copied.module.add_submodule(leaves[point.source], FakeQuantize.of(ranges[point.source], factor))
        quantized = _insert(copied.module.graph, twin, value, point, leaves[point.source], last_input)
        if gain_of(value) != 1 or (point.users is None and _saturates(module_of(quantized), value)):
            needless.append(twin[value])
    for node in needless:
        node.replace_all_uses_with(source_of(node))
        copied.module.graph.erase_node(node)
    copied.module.to(_device(copied.module))
    for node in placement.integer:
        if node.target is hard_sigmoid:
            twin[node].target = gate
            twin[node].kwargs = gate_options(node)
    integer = tuple(twin[node] for node in graph.module.graph.nodes if node in layers)
    for node in integer:
        _grid_weights(node, width)
    copied.module.graph.lint()
    copied.module.recompile()
    return Quantized(copied, twin, integer)


def gain_of(value: fx.Node) -> float:
    """The factor that a value is the product of, where a scale can take it up."""
    return float(value.kwargs["factor"]) if value.target is gain else 1.0  # type: ignore[arg-type]


def _insert(
    graph: fx.Graph, twin: dict[fx.Node, fx.Node], value: fx.Node, point: Point, leaf: str, last_input: fx.Node
) -> fx.Node:
    node = twin[value]
    with graph.inserting_after(last_input if node.op == "placeholder" else node):
        quantized = graph.call_module(leaf, (node,))
    quantized.meta = {key: node.meta[key] for key in ("shape",) if key in node.meta}
    readers = None if point.users is None else {twin[user] for user in point.users}
    node.replace_all_uses_with(
        quantized, delete_user_cb=lambda user: user is not quantized and (readers is None or user in readers)
    )
    return quantized


def _saturates(leaf: FakeQuantize, value: fx.Node) -> bool:
    """Whether the grid itself cuts off what an activation would: then it is left out.

    ONNX Runtime would see that for a ReLU, but with a clip on both sides it leaves the layer before it in float.
    """
    trait = trait_of(value)
    if trait is None or not trait.fused or any(isinstance(argument, fx.Node) for argument in value.args[1:]):
        return False
    levels = (torch.arange(LEVELS) - leaf.zero_point.cpu()) * leaf.scale.cpu()
    activated = cast("Callable[..., Tensor]", value.target)(levels, *value.args[1:], **value.kwargs)
    half = 0.5001 * float(leaf.scale)  # bounds that fall between two levels are half a step off either way
    return bool(((activated - levels).abs() <= half).all())


def _grid_weights(node: fx.Node, width: int) -> None:
    layer, trait, step = module_of(node), trait_of(node), input_scale(node)
    bias = getattr(layer, trait.bias, None) if trait and trait.bias else None
    for name, axis in (trait.weights if trait and trait.weights else {}).items():
        if grid_of(layer, name) is None:
            grid = fitted(layer, name, () if axis is None else (axis,), width)
            if bias is not None and axis is not None and step is not None:
                # A channel of tiny weights beside a large bias: coarser weights, so that int32 holds the bias.
                least = bias.detach().abs() / (step * BIAS_HEADROOM)
                least = least.view_as(grid.scale) if grid.axes else least.amax()
                grid.scale.copy_(torch.maximum(grid.scale, least))
            constrain(layer, name, grid)


def store(quantized: Quantized, floats: Iterable[fx.Node], width: int) -> None:
    """Keep the weights of float layers in bytes that are read as floats. `floats`: nodes of the float graph."""
    for node in floats:
        layer, trait = module_of(quantized.twin[node]), trait_of(node)
        for name, axis in (trait.weights if trait and trait.weights else {}).items():
            if grid_of(layer, name) is None:
                axes = () if axis is None else (axis,)
                constrain(layer, name, fitted(layer, name, axes, width, folded=True))


def input_scale(node: fx.Node) -> Tensor | None:
    """The step of the integers that a layer reads; None where it reads floats."""
    source = source_of(node)
    leaf = module_of(source) if source.op == "call_module" else None
    return leaf.scale * leaf.gain if isinstance(leaf, FakeQuantize) else None


def grid_biases(quantized: Quantized) -> None:
    """Put the biases on the grid of the accumulators, where a layer is called once and reads integers."""
    for node in quantized.layers:
        layer, trait, step = module_of(node), trait_of(node), input_scale(node)
        if trait is None or trait.bias is None or step is None or len(calls_of(node)) > 1:
            continue
        grid = next((grid_of(layer, name) for name in trait.weights or {}), None)
        bias = getattr(layer, trait.bias, None)
        if grid is not None and grid.axes in ((0,), ()) and isinstance(bias, Tensor):
            constrain(layer, trait.bias, BiasGrid((step * grid.scale.flatten()).expand(bias.shape)))


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
