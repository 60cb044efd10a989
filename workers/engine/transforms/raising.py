"""Raises what exporters take apart to the layer or op that it was, so that steps see it; done once, after reading.

Every pattern is a few lines, and a line in `PATTERNS`. Attention stays in its parts, which every step and every runtime
knows how to treat; `attention.py` finds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from workers.engine.errors import InvalidModelError
from workers.engine.graph import Graph
from workers.engine.naming import layer_of_weight, scope_of
from workers.engine.ops.activations import clip, gelu, hard_sigmoid, hard_swish, mish, softplus, swish
from workers.engine.ops.casting import cast
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.ops.linear import Linear, Projection
from workers.engine.ops.normalization import BatchNorm, LayerNorm, RMSNorm
from workers.engine.ops.pooling import global_average_pool
from workers.engine.ops.reductions import reduce_mean
from workers.engine.ops.shapes import flatten
from workers.engine.shapes import propagate
from workers.engine.transforms.absorb_bias import absorb_bias
from workers.engine.transforms.patterns import Axes, Call, Match, Number, Pattern, Stored, Value, find, product, stored

x, axes, eps = Value("x"), Axes("axes"), Number("eps")
weight, bias = Stored("weight"), Stored("bias")


def mean_of(value: Pattern) -> Pattern:
    return Call(reduce_mean, value, axes, keepdims=1)


def square(value: Pattern) -> Pattern:
    return value * value | value**2


def one_over(value: Pattern) -> Pattern:
    return Call(torch.reciprocal, value) | 1 / value


def to_float(value: Pattern) -> Pattern:
    """What is normalized in 32 bits is cast back to 32 bits where the model has no others."""
    return value | Call(cast, value, to=1)


mean = mean_of(x)
centred = x - mean
variance = mean_of(square(centred))
deviation = Call(torch.sqrt, variance + eps)
normal = centred / deviation | centred * one_over(deviation)
gain = one_over(deviation) * weight
LAYER_NORM = normal * weight + bias | (x * gain + (bias - mean * gain))
LAYER_NORM_WITHOUT_BIAS = normal * weight

root = Call(torch.sqrt, mean_of(square(x)) + eps)
inverse_root = one_over(root) | (mean_of(square(x)) + eps) ** -0.5
RMS_NORM = to_float(x / root | x * inverse_root) * weight

erf = Call(torch.erf, x / math.sqrt(2) | x * math.sqrt(0.5))
GELU = product(x, 0.5, 1 + erf) | x * (0.5 + 0.5 * erf)
slope = math.sqrt(2 / math.pi)
bend = product(x, x, 0.044715) | 0.044715 * x**2
tanh = Call(torch.tanh, slope * (x + (0.044715 * (x * (x * x) | x**3) | x * bend)) | product(x, slope, 1 + bend))
GELU_TANH = product(x, 0.5, 1 + tanh) | x * (0.5 + 0.5 * tanh)

relu6 = Call(clip, x + 3, 0.0, 6.0)
HARD_SIGMOID = relu6 / 6 | relu6 * (1 / 6)
HARD_SIGMOID_OF_ANY_SLOPE = Call(clip, Number("alpha") * x + Number("beta"), 0.0, 1.0)
HARD_SWISH = (
    x * (Call(hard_sigmoid, x, alpha=1 / 6, beta=0.5) | HARD_SIGMOID) | (x * relu6) / 6 | product(x, relu6, 1 / 6)
)
SWISH = x * Call(torch.sigmoid, x)
SWISH_OF_ANY_SLOPE = x * Call(torch.sigmoid, Number("alpha") * x)
MISH = x * Call(torch.tanh, Call(softplus, x))

SPATIAL_MEAN = Call(reduce_mean, x, axes)
AFFINE = x * weight + bias


@dataclass(frozen=True)
class Rule:
    pattern: Pattern
    replace: Callable[[Match, Raising], fx.Node | None]
    """Adds what takes the place of the match that ends at a node; None where it does not fit after all."""


def _op(function: Callable[..., Any], **fixed: Any) -> Callable[[Match, Raising], fx.Node]:
    """A function of x; its options are fixed, or the numbers that the pattern has named like them."""

    def replace(match: Match, raising: Raising) -> fx.Node:
        named = {name: number for name, number in match.values.items() if isinstance(number, float)}
        return raising.nodes.call_function(function, (match["x"],), {**fixed, **named})

    return replace


def _layer_norm(match: Match, raising: Raising) -> fx.Node | None:
    return raising.norm(match, lambda axis, *weights: LayerNorm(*weights, axis=axis, eps=match["eps"]))


def _rms_norm(match: Match, raising: Raising) -> fx.Node | None:
    return raising.norm(match, lambda axis, scale, _: RMSNorm(scale, axis=axis, eps=match["eps"]))


def _global_average_pool(match: Match, raising: Raising) -> fx.Node | None:
    """Where the mean goes over two axes and more, which are all but the first two."""
    wanted = match["axes"]
    rank = raising.rank(match["x"]) if len(wanted) > 1 else None
    if rank is None or sorted(axis % rank for axis in wanted) != list(range(2, rank)):
        return None
    pooled = raising.nodes.call_function(global_average_pool, (match["x"],))
    if match.last.kwargs.get("keepdims", 1):
        return pooled
    return raising.nodes.call_function(flatten, (pooled,), {"axis": 1})


def _batch_norm(match: Match, raising: Raising) -> fx.Node | None:
    """A factor and a summand for each channel of a layer, where that can take them in at once."""
    layer = raising.leaf(match["x"])
    if not isinstance(layer, (Conv, ConvTranspose, Linear)) or isinstance(layer, Projection):
        return None
    if parametrize.is_parametrized(layer) or len(match["x"].users) > 1 or raising.calls(match["x"]) > 1:
        return None
    after = 0 if isinstance(layer, Linear) else layer.rank
    scale, shift = (_by_channel(stored(match[name]), after) for name in ("weight", "bias"))
    if scale is None or shift is None or scale.shape != shift.shape:
        return None
    unit = torch.ones_like(scale)
    module = BatchNorm(scale, shift, 0 * unit, unit - UNIT_EPS, eps=UNIT_EPS, momentum=0.1)
    return raising.call(module.eval(), match, ("weight", "bias"))


PATTERNS = (
    Rule(LAYER_NORM, _layer_norm),
    Rule(LAYER_NORM_WITHOUT_BIAS, _layer_norm),
    Rule(RMS_NORM, _rms_norm),
    Rule(GELU, _op(gelu, approximate="none")),
    Rule(GELU_TANH, _op(gelu, approximate="tanh")),
    Rule(HARD_SWISH, _op(hard_swish)),
    Rule(HARD_SIGMOID, _op(hard_sigmoid, alpha=1 / 6, beta=0.5)),
    Rule(HARD_SIGMOID_OF_ANY_SLOPE, _op(hard_sigmoid)),
    Rule(SWISH, _op(swish, alpha=1.0)),
    Rule(SWISH_OF_ANY_SLOPE, _op(swish)),
    Rule(MISH, _op(mish)),
    Rule(SPATIAL_MEAN, _global_average_pool),
)
"""Larger patterns stand before those that they contain."""
BATCH_NORMS = (Rule(AFFINE, _batch_norm),)
"""Only raised to be folded: in training, statistics of batches would take the place of none at all."""
UNIT_EPS = 2.0**-17
"""PyTorch wants one; with a variance of 1 less this the root is 1, exactly."""


def raise_patterns(graph: Graph, rules: Sequence[Rule] = PATTERNS) -> int:
    """Raise in place whatever fits; outputs stay the same to 1e-6. Returns how many patterns went."""
    raising = Raising(graph, rules)
    for node in reversed(list(graph.module.graph.nodes)):
        if node.op == "call_function" and node not in raising.gone:
            raising.raise_at(node)
    raised = raising.raised + absorb_bias(graph)
    if raised:
        graph.module.graph.eliminate_dead_code()
        _forget_unused(graph.module)
        graph.module.recompile()
    return raised


class Raising:
    def __init__(self, graph: Graph, rules: Sequence[Rule]) -> None:
        self.graph = graph
        self._rules = rules
        self.nodes = graph.module.graph
        self.raised = 0
        self.gone: set[fx.Node] = set()
        self._layers = {str(node.meta["layer"]) for node in self.nodes.nodes if "layer" in node.meta}
        self._has_shapes: bool | None = None

    def raise_at(self, node: fx.Node) -> None:
        for rule in self._rules:
            match = find(rule.pattern, node)
            if match is None or (match.rank > 1 and (self.rank(match["x"]) or 0) < match.rank):
                continue
            with self.nodes.inserting_before(node):
                raised = rule.replace(match, self)
            if raised is None:
                continue
            raised.meta = {**node.meta, **raised.meta, "raised": True}
            node.replace_all_uses_with(raised)
            for inner in sorted(match.nodes, reverse=True):
                self.nodes.erase_node(inner)
            self.gone |= match.nodes
            self.raised += 1
            return

    def norm(
        self, match: Match, build: Callable[[int, nn.Parameter, nn.Parameter | None], nn.Module]
    ) -> fx.Node | None:
        """A leaf over the last axes; None where the axes are others, or the weights do not lie along them."""
        axis = self._first_of_last_axes(match["axes"], match["x"])
        weights = [match["weight"], match.get("bias")]
        laid_out = [None if weight is None else _along(stored(weight), axis) for weight in weights]
        if axis is None or laid_out[0] is None or (weights[1] is not None and laid_out[1] is None):
            return None
        if laid_out[1] is not None and laid_out[1].shape != laid_out[0].shape:
            return None
        return self.call(build(axis, laid_out[0], laid_out[1]), match, ("weight", "bias"))

    def call(self, module: nn.Module, match: Match, names: tuple[str, ...]) -> fx.Node:
        """A new leaf over x, under the user's names for it and for its weights."""
        path = self._free_path(type(module).__name__.lower())
        self.graph.module.add_submodule(path, module)
        made = self.nodes.call_module(path, (match["x"],))
        made.meta["layer"] = self._layer_name(match)
        found = {name: match.get(name) for name in names}
        made.meta["names"] = {name: str(weight.meta["name"]) for name, weight in found.items() if weight is not None}
        return made

    def _first_of_last_axes(self, axes: tuple[int, ...], source: fx.Node) -> int | None:
        """-2 for axes that are the last two, however they are counted; None where they are not the last ones."""
        if any(axis >= 0 for axis in axes):
            rank = self.rank(source)
            axes = () if rank is None else tuple(axis - rank if axis >= 0 else axis for axis in axes)
        return -len(axes) if axes and sorted(axes) == list(range(-len(axes), 0)) else None

    def rank(self, node: fx.Node) -> int | None:
        """Found by running the graph once, where a pattern asks for the first time."""
        if self._has_shapes is None:
            try:
                propagate(self.graph)
            except InvalidModelError:
                self._has_shapes = False
            else:
                self._has_shapes = True
        shape = node.meta.get("shape") if self._has_shapes else None
        return None if shape is None else len(shape)

    def leaf(self, node: fx.Node) -> nn.Module | None:
        return self.graph.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def calls(self, node: fx.Node) -> int:
        return sum(other.op == "call_module" and other.target == node.target for other in self.nodes.nodes)

    def _free_path(self, stem: str) -> str:
        number = 0
        while hasattr(self.graph.module, f"{stem}_{number}"):
            number += 1
        return f"{stem}_{number}"

    def _layer_name(self, match: Match) -> str:
        """That of the weight, where it belongs to this layer alone, else of the place where the exporter found it."""
        name, exported = str(match["weight"].meta["name"]), str(match.last.meta.get("node", ""))
        scope = scope_of(exported, "") if exported.startswith("/") else ""
        shared = any(user not in match.nodes for user in match["weight"].users)
        wanted = (scope.rpartition(".")[0] if shared else "") or layer_of_weight(name) or name
        unique, number = wanted, 1
        while unique in self._layers:
            number += 1
            unique = f"{wanted}_{number}"
        self._layers.add(unique)
        return unique


def _along(weight: Tensor | None, axis: int | None) -> nn.Parameter | None:
    """The weight with as many dimensions as there are axes, on its own storage; None where it has more."""
    if weight is None or axis is None or weight.dtype is not torch.float32:
        return None
    shape = list(weight.shape)
    while len(shape) > -axis and shape[0] == 1:
        shape.pop(0)
    return nn.Parameter(weight.detach().reshape(shape).clone()) if len(shape) == -axis else None


def _by_channel(weight: Tensor | None, after: int) -> Tensor | None:
    """(channels,) of a tensor that has one value for each, with as many dimensions after them; None for others."""
    if weight is None or weight.dtype is not torch.float32 or weight.dim() < after + 1:
        return None
    channels = weight.shape[weight.dim() - after - 1]
    return weight.detach().reshape(channels) if weight.numel() == channels else None


def _forget_unused(module: fx.GraphModule) -> None:
    """Constants that no node reads any more would still count as weights."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
        if name not in read:
            delattr(module, name)
