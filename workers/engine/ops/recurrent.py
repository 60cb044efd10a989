"""The records of LSTM, GRU and plain RNN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn

from workers.engine.ops.aten import reads_aten
from workers.engine.ops.base import leaf_of, register, source_of
from workers.engine.ops.constants import constant_of_shape
from workers.engine.ops.indexing import slice_
from workers.engine.ops.layers import LayerOp
from workers.engine.ops.recurrent_cells import ACTIVATIONS, GRU, LSTM, RNN, Recurrent
from workers.engine.ops.shapes import concat, expand, reshape, transpose, unsqueeze

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder


Ints = Sequence[int]


def lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    hidden_size: int | None = None,  # noqa: ARG001 (the weights have it)
    direction: str = "forward",
    layout: int = 0,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    input_forget: int = 0,
) -> tuple[Tensor, ...]:
    """An LSTM whose weights are computed by the graph."""
    usual = _common(direction, layout, activations, activation_alpha, activation_beta, clip)
    module = LSTM(weight_ih, weight_hh, bias, peepholes=peepholes, input_forget=input_forget, **usual)
    return module(x, lengths, hidden, cell)


def gru(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    *,
    hidden_size: int | None = None,  # noqa: ARG001 (the weights have it)
    direction: str = "forward",
    layout: int = 0,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """A GRU whose weights are computed by the graph."""
    usual = _common(direction, layout, activations, activation_alpha, activation_beta, clip)
    return GRU(weight_ih, weight_hh, bias, linear_before_reset=linear_before_reset, **usual)(x, lengths, hidden)


def rnn(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    *,
    hidden_size: int | None = None,  # noqa: ARG001 (the weights have it)
    direction: str = "forward",
    layout: int = 0,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
) -> tuple[Tensor, ...]:
    """A plain RNN whose weights are computed by the graph."""
    usual = _common(direction, layout, activations, activation_alpha, activation_beta, clip)
    return RNN(weight_ih, weight_hh, bias, **usual)(x, lengths, hidden)


def _common(
    direction: str,
    layout: int,
    activations: Sequence[str] | None,
    alpha: Sequence[float] | None,
    beta: Sequence[float] | None,
    clip: float | None,
) -> dict[str, Any]:
    return {
        "direction": direction,
        "layout": layout,
        "activations": tuple(name.lower() for name in activations or ()),
        "activation_alpha": tuple(alpha or ()),
        "activation_beta": tuple(beta or ()),
        "clip": clip,
    }


class RecurrentOp(LayerOp):
    leaf: ClassVar[type[Recurrent]]
    results = 2
    """The sequence, then the last states."""
    required = 1
    words = frozenset(("forward", "reverse", "bidirectional", *(kind.name for kind in ACTIVATIONS.values())))
    options: ClassVar[tuple[str, ...]] = ()
    """Attributes of the op beside the common ones."""
    weights: ClassVar[dict[str, int]] = {"weight_ih": 1, "weight_hh": 1}
    vectors: ClassVar[tuple[str, ...]] = ("bias",)
    """Parameters with one or several values a hidden unit."""

    def read_layer(self, node: OnnxNode, graph: GraphBuilder) -> tuple[Value, ...]:
        weight_ih, weight_hh, bias = node.weight(1), node.weight(2), node.optional_weight(3)
        directions, hidden = weight_hh.shape[0], weight_hh.shape[-1]
        rows = self.leaf.gates * hidden
        if weight_ih.dim() != 3 or weight_ih.shape[:2] != (directions, rows) or weight_hh.shape[1:] != (rows, hidden):
            raise node.invalid(
                f"weights of shape {list(weight_ih.shape)} and {list(weight_hh.shape)} do not fit each other"
            )
        if bias is not None and bias.shape != (directions, 2 * rows):
            raise node.invalid(f"a bias of shape {list(bias.shape)} does not fit its weights")
        direction = node.attribute("direction", "forward")
        if {"forward": 1, "reverse": 1, "bidirectional": 2}.get(direction) != directions:
            raise node.invalid(f"direction {direction!r} does not fit weights for {directions}")
        options: dict[str, Any] = self.read_options(node, graph)
        module = self.leaf(
            graph.parameter(weight_ih),
            graph.parameter(weight_hh),
            None if bias is None else graph.parameter(bias),
            direction=direction,
            layout=node.attribute("layout", 0),
            activations=self._activations(node, directions),
            activation_alpha=node.attribute("activation_alpha", ()),
            activation_beta=node.attribute("activation_beta", ()),
            clip=node.attribute("clip"),
            **options,
        )
        states = [_unless_zero(state, graph) for state in node.inputs[5 : 4 + self.results]]
        call = graph.module(node.layer(1), module, node.input(0), *node.inputs[4:5], *states)
        return graph.unpack(call, self.results)

    def read_options(self, node: OnnxNode, graph: GraphBuilder) -> dict[str, Any]:  # noqa: ARG002 (LSTM needs it)
        return {option: node.attribute(option, 0) for option in self.options}

    def _activations(self, node: OnnxNode, directions: int) -> tuple[str, ...]:
        names = tuple(name.lower() for name in node.attribute("activations", ()))
        if names and (len(names) != len(self.leaf.usual) * directions or not ACTIVATIONS.keys() >= set(names)):
            raise node.invalid(f"activations {list(names)} are not {len(self.leaf.usual)} of ONNX's for each direction")
        return names

    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module = leaf_of(node, Recurrent)
        weights = [onnx.weight(node, name) for name in ("weight_ih", "weight_hh", "bias")]
        states = list(node.args[1:]) + [None] * (self.results - len(node.args[1:]))
        unusual = module.activations != module.usual * module.weight_ih.shape[0]
        onnx.emit(
            node,
            self.name,
            [node.args[0], *weights, *states, *self.extra_weights(node, onnx)],
            outputs=1,
            direction=module.direction,
            hidden_size=module.hidden,
            layout=module.layout or None,
            clip=module.clip,
            activations=tuple(ACTIVATIONS[name].name for name in module.activations) if unusual else None,
            activation_alpha=module.activation_alpha,
            activation_beta=module.activation_beta,
            **{option: getattr(module, option) for option in self.options},
        )

    def extra_weights(self, node: fx.Node, onnx: OnnxBuilder) -> list[str]:  # noqa: ARG002 (LSTM needs it)
        return []

    def macs(self, node: fx.Node) -> int:
        cells = math.prod(source_of(node).meta["shape"][:2])
        if node.op == "call_function":
            return cells * sum(math.prod(source_of(node, position).meta["shape"]) for position in (1, 2))
        module = leaf_of(node, Recurrent)
        return cells * (math.prod(module.weight_ih.shape) + math.prod(module.weight_hh.shape))

    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        """A hidden unit is one in every gate and in both directions; states and outputs have hidden units last."""
        given = axes.of(source_of(node))
        rows, taken = axes.weight(node, "weight_ih", [None, "makes", "takes"])[1:]
        recurrent, hidden = axes.weight(node, "weight_hh", [None, "makes", "takes"])[1:]
        axes.same(given[-1], taken)
        for gates in (rows, recurrent):
            axes.same(gates, axes.repeated(hidden, self.leaf.gates))
        for name in self.vectors:
            axes.vector(node, name, hidden, "makes")
        for state in node.args[2:]:
            if isinstance(state, fx.Node):
                axes.same(axes.of(state)[-1], hidden)
        reason = f"{axes.name(node)} runs along it"
        stays = [[axes.stays(size, reason) for size in shape[:-1]] for shape in axes.shape(node)]
        axes.give_parts(node, [[*dims, hidden] for dims in stays])


@register
class LSTMOp(RecurrentOp):
    name = "LSTM"
    modules = (LSTM,)
    functions: ClassVar[tuple[Callable[..., Any], ...]] = (lstm,)
    weight_inputs = (1, 2, 3, 7)
    vectors = ("bias", "peepholes")
    leaf = LSTM
    results = 3
    options = ("input_forget",)

    def read_options(self, node: OnnxNode, graph: GraphBuilder) -> dict[str, Any]:
        peepholes = node.optional_weight(7)
        options = super().read_options(node, graph)
        return {**options, "peepholes": None if peepholes is None else graph.parameter(peepholes)}

    def extra_weights(self, node: fx.Node, onnx: OnnxBuilder) -> list[str]:
        return [onnx.weight(node, "peepholes")]


@register
class GRUOp(RecurrentOp):
    name = "GRU"
    modules = (GRU,)
    functions = (gru,)
    weight_inputs = (1, 2, 3)
    leaf = GRU
    options = ("linear_before_reset",)


@register
class RNNOp(RecurrentOp):
    name = "RNN"
    modules = (RNN,)
    functions = (rnn,)
    weight_inputs = (1, 2, 3)
    leaf = RNN


@reads_aten("lstm.input", "gru.input", "rnn_tanh.input")
def read_aten_recurrent(node: AtenNode, graph: GraphBuilder) -> tuple[Value, ...]:
    """PyTorch's layers are stacked in one call; here each is a leaf of its own. Outputs: sequence, last states."""
    leaf: type[Recurrent] = {"lstm": LSTM, "gru": GRU, "rnn_tanh": RNN}[node.target.split(".")[0]]
    layers, both = int(node.get("num_layers")), bool(node.get("bidirectional"))
    if node.get("train") and node.get("dropout"):
        raise node.unsupported("the model was exported in training mode; call model.eval() before torch.export.export")
    weights, each = node.get("params"), 4 if node.get("has_biases") else 2
    directions = 2 if both else 1
    if not all(isinstance(weight, Tensor) for weight in weights) or len(weights) != layers * directions * each:
        raise node.unsupported("its weights are computed, or it has projections")
    states = node.get("hx") if isinstance(node.get("hx"), list) else [node.get("hx")]
    x, last = node.value("input"), []
    if node.get("batch_first"):
        x = graph.call(transpose, x, perm=(1, 0, 2))
    options: dict[str, Any] = {"linear_before_reset": 1} if leaf is GRU else {}
    for layer in range(layers):
        first = layer * directions
        own = [weights[(first + direction) * each : (first + direction + 1) * each] for direction in range(directions)]
        module = leaf(
            nn.Parameter(torch.stack([onnx_gates(part[0], leaf) for part in own])),
            nn.Parameter(torch.stack([onnx_gates(part[1], leaf) for part in own])),
            nn.Parameter(torch.stack([torch.cat([onnx_gates(bias, leaf) for bias in part[2:]]) for part in own]))
            if each == 4
            else None,
            direction="bidirectional" if both else "forward",
            **options,
        )
        initial = [
            _unless_zero(graph.call(slice_, state, (first,), (first + directions,), (0,), (1,)), graph)
            for state in states
        ]
        call = graph.module(f"{node.layer('params')}.{layer}", module, x, None, *initial)
        output, *ends = graph.unpack(call, 1 + len(states))
        last.append(ends)
        ordered = graph.call(transpose, output, perm=(0, 2, 1, 3))
        x = graph.call(reshape, ordered, (0, 0, directions * module.hidden), allowzero=0)
    if node.get("batch_first"):
        x = graph.call(transpose, x, perm=(1, 0, 2))
    return x, *(graph.call(concat, *(ends[place] for ends in last), axis=0) for place in range(len(states)))


COPYING = {slice_: 0, expand: 0, reshape: 0, transpose: 0, unsqueeze: 0, constant_of_shape: 1}
"""Functions whose result holds no other numbers than one of their arguments."""


def _unless_zero(state: Value | None, graph: GraphBuilder) -> Value | None:
    """None for an initial state of zeros: without one a layer starts from them anyway.

    Exporters fill the states of all layers at once, which would tie the hidden units of one layer to another's.
    """
    source: Any = state
    while isinstance(source, fx.Node) and source.target in COPYING:
        source = source.args[COPYING[source.target]]
    value = graph.known(source)
    return None if isinstance(value, Tensor) and not value.any() else state


def onnx_gates(rows: Tensor, leaf: type[Recurrent]) -> Tensor:
    """Rows of PyTorch's gate order in ONNX's."""
    gates = rows.unflatten(0, (leaf.gates, -1))
    return gates[[leaf.torch_order.index(gate) for gate in range(leaf.gates)]].flatten(0, 1)
