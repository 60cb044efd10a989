"""Bounds on inner results: where they go, and a leaf that learns them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from workers.engine.graph import Graph, Layer
from workers.engine.ops.activations import clip
from workers.engine.ops.axis_rules import elementwise
from workers.engine.ops.base import Op, Quantization, op_of, register
from workers.engine.ops.indexing import Embedding
from workers.engine.ops.opaque import Stored
from workers.engine.quantization.nodes import calls_of, module_of
from workers.engine.transforms.adding import add_leaf

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder

BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Softmax", "Softsign"})
ACTIVATIONS = frozenset({
    "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "ThresholdedRelu", "PRelu", "Gelu", "Mish", "Swish", "Softplus",
    "HardSwish", "Clip", "Shrink", *BOUNDED,
})  # fmt: skip
NORMS = frozenset({"BatchNormalization"})
SUMS = frozenset({"Add", "Sum"})


NARROWEST = 1e-3
"""Between learned bounds, however the updates go."""


class _Decay(torch.autograd.Function):
    """The identity; L2 regularisation of what passes, as its gradient."""

    @staticmethod
    def forward(ctx: Any, bound: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(bound)
        ctx.decay = decay
        return bound.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (bound,) = ctx.saved_tensors
        return gradient + 2 * ctx.decay * bound, None


class Bounded(nn.Module):
    """PACT (Choi et al., 2018): bounds that learn, on a grid of so many bits between them, straight through inside.

    `high` and, unless it is 0 or there is none, `low` are parameters, both 0-d.
    """

    low: Tensor

    def __init__(self, low: float, high: float, bits: int, decay: float) -> None:
        super().__init__()
        self.high = nn.Parameter(torch.tensor(high))
        if low < 0:
            self.low = nn.Parameter(torch.tensor(low))
        else:
            self.register_buffer("low", torch.tensor(0.0))
        self.steps, self.decay = 2**bits - 1, decay

    def forward(self, x: Tensor) -> Tensor:
        low, high = self._bounds()
        low, high = _Decay.apply(low, self.decay), _Decay.apply(high, self.decay)
        kept = torch.minimum(torch.maximum(x, low), high)
        step = (high - low).detach() / self.steps
        return kept + ((kept / step).round() * step - kept).detach()

    def numbers(self) -> tuple[float, float]:
        low, high = self._bounds()
        return float(low.detach()), float(high.detach())

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """The upper one stays above the lower one, however the updates go."""
        low = self.low.clamp(max=0.0)
        return low, torch.maximum(self.high, low.detach() + NARROWEST)


@register
class BoundedOp(Op):
    name = "Bounded"
    domain = "modelpress"
    modules = (Bounded,)
    quantization = Quantization(fused=True)
    axes = elementwise

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        low, high = module_of(node).numbers()
        onnx.emit(node, "Clip", [node.args[0], low, high])


def result_of(layer: Layer) -> tuple[fx.Node | None, str]:
    """The value that a layer gives to others, behind its norm and activation; None, and why, where there is none."""
    if isinstance(layer.module, Embedding):
        return None, "its results are rows of a table"
    if isinstance(layer.module, Stored):
        return None, "it is part of what ONNX Runtime computes as it stands in the file"
    if len(calls_of(layer.node)) > 1:
        return None, "it is called at several places"
    return last_of(layer.node), ""


def last_of(node: fx.Node) -> fx.Node:
    """Through what only this value goes into: norms, activations, and sums that an activation follows."""
    parts = [user for user in node.users if user.target is operator.getitem]
    if parts:
        node = min(parts, key=lambda part: int(part.args[1]))  # type: ignore[arg-type]
    while (following := _only_user(node)) is not None:
        name = op_of(following).name
        after = _only_user(following)
        summed = name in SUMS and after is not None and op_of(after).name in ACTIVATIONS
        if name not in ACTIVATIONS | NORMS and not summed:
            break
        node = following
    return node


def name_of(node: fx.Node) -> str:
    return op_of(node).name if node.op in ("call_module", "call_function") else ""


def bound(graph: Graph, node: fx.Node, low: float | None, high: float | None) -> None:
    """Clip a value, in place. A ReLU or clip that makes it becomes part of it, which runtimes fold into the layer."""
    nodes = graph.module.graph
    source: Any = node
    before = bounds_of(node)
    if before is not None:
        source = node.args[0]
        low, high = _tightest(max, low, before[0]), _tightest(min, high, before[1])
    with nodes.inserting_after(node):
        made = nodes.call_function(clip, (source, low, high))
    _take_place(graph, node, made, source)


def bounds_of(node: fx.Node) -> tuple[float | None, float | None] | None:
    """Of what a ReLU or a clip with constants gives; None for all other values."""
    if name_of(node) == "Relu":
        return 0.0, None
    if name_of(node) != "Clip" or any(isinstance(argument, fx.Node) for argument in node.args[1:]):
        return None
    low, high = (*node.args[1:], None, None)[:2]
    return cast("float | None", low), cast("float | None", high)


def _tightest(choose: Callable[[float, float], float], one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else choose(one, other)


def learn_bound(graph: Graph, node: fx.Node, leaf: Bounded) -> fx.Node:
    """The same with a leaf whose bounds are trained."""
    path = add_leaf(graph.module, "bounded", leaf)
    with graph.module.graph.inserting_after(node):
        made = graph.module.graph.call_module(path, (node,))
    _take_place(graph, node, made, node)
    return made


def freeze_bounds(graph: Graph) -> list[tuple[float, float]]:
    """Learned bounds become constants, in place; returns them."""
    found = []
    for node in list(graph.module.graph.nodes):
        leaf = module_of(node) if node.op == "call_module" else None
        if not isinstance(leaf, Bounded):
            continue
        found.append(leaf.numbers())
        before: Any = node.args[0]
        bound(graph, before, *found[-1])
        node.replace_all_uses_with(node.args[0])
        graph.module.graph.erase_node(node)
        graph.module.delete_submodule(str(node.target))
    graph.module.recompile()
    return found


def _take_place(graph: Graph, node: fx.Node, made: fx.Node, source: fx.Node) -> None:
    """Everything that read the node reads what was made of it."""
    made.meta = {key: node.meta[key] for key in ("shape", "dtype") if key in node.meta}
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    if source is not node:
        graph.module.graph.erase_node(node)
    graph.module.recompile()


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    only = users[0] if len(users) == 1 else None
    return only if only is not None and only.op in ("call_module", "call_function") else None
