"""LSTM, GRU and plain RNN, as leaves with ONNX's own layout of weights.

Where the cell is the usual one, torch's fused kernels compute it, so that training is fast; else a loop does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn

from workers.engine.ops.aten import reads_aten
from workers.engine.ops.base import Op, register
from workers.engine.ops.indexing import slice_
from workers.engine.ops.shapes import concat, reshape, transpose

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.writers.onnx import OnnxBuilder

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": nn.functional.softsign,
    "softplus": nn.functional.softplus,
    "hardsigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
}


class Recurrent(nn.Module):
    """Weights (directions, gates × hidden, in or hidden), bias (directions, 2 × gates × hidden) or None.

    Takes x (time, batch, in), sequence lengths (batch,), initial states (directions, batch, hidden), each but the first
    optional; gives (time, directions, batch, hidden) and the last states. With `layout` 1 the batch comes first.
    """

    gates: ClassVar[int]
    torch_order: ClassVar[tuple[int, ...]]
    """Where torch's gates stand in ONNX's order."""
    usual: ClassVar[tuple[str, ...]]
    """The activations of one direction that the fused kernel has."""

    def __init__(
        self,
        weight_ih: nn.Parameter,
        weight_hh: nn.Parameter,
        bias: nn.Parameter | None,
        *,
        direction: str = "forward",
        layout: int = 0,
        activations: tuple[str, ...] = (),
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.weight_ih = weight_ih
        self.weight_hh = weight_hh
        self.bias = bias
        self.direction = direction
        self.layout = layout
        self.activations = activations or self.usual * weight_ih.shape[0]
        self.clip = clip

    @property
    def hidden(self) -> int:
        return int(self.weight_hh.shape[2])

    @property
    def fused(self) -> bool:
        """Whether torch's kernel computes this cell."""
        return self.clip is None and self.activations == self.usual * (2 if self.direction == "bidirectional" else 1)

    def kernel(self, x: Tensor, states: list[Tensor], weights: list[Tensor], bidirectional: bool) -> tuple[Tensor, ...]:
        raise TypeError(type(self).__name__)

    def cell(
        self, x: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor, ...], direction: int
    ) -> tuple[Tensor, ...]:
        """One step of one direction: `x` (batch, in) to the next states, the hidden one first."""
        raise TypeError(type(self).__name__)

    def run(self, x: Tensor, lengths: Tensor | None, states: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        if self.layout:
            x = x.transpose(0, 1)
            states = tuple(None if state is None else state.transpose(0, 1) for state in states)
        weight_ih, weight_hh, bias = self.weight_ih, self.weight_hh, self.bias
        directions = weight_ih.shape[0]
        if bias is None:
            bias = weight_ih.new_zeros(directions, 2 * weight_ih.shape[1])
        zeros = x.new_zeros(directions, x.shape[1], self.hidden)
        filled = [zeros if state is None else state for state in states]
        run = self._run_fused if self.fused and lengths is None else self._run_loop
        result = run(x, lengths, filled, (weight_ih, weight_hh, *bias.chunk(2, dim=1)))
        if self.layout:
            return result[0].permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in result[1:])
        return result

    def _run_fused(
        self, x: Tensor, _: Tensor | None, states: list[Tensor], weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        flat = [
            weight[direction].unflatten(0, (self.gates, self.hidden))[list(self.torch_order)].flatten(0, 1)
            for direction in range(weights[0].shape[0])
            for weight in weights
        ]
        backwards = self.direction == "reverse"
        output, *last = self.kernel(x.flip(0) if backwards else x, states, flat, len(flat) == 8)
        output = output.unflatten(2, (len(flat) // 4, self.hidden)).transpose(1, 2)
        return output.flip(0) if backwards else output, *last

    def _run_loop(
        self, x: Tensor, lengths: Tensor | None, states: list[Tensor], weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        steps, batch = x.shape[:2]
        ends = torch.full((batch,), steps, device=x.device) if lengths is None else lengths.to(torch.int64)
        outputs, last = [], []
        for direction in range(weights[0].shape[0]):
            backwards = self.direction == "reverse" or direction == 1
            own = tuple(weight[direction] for weight in weights)
            state = tuple(start[direction] for start in states)
            made: list[Tensor] = [x.new_zeros(())] * steps
            for step in reversed(range(steps)) if backwards else range(steps):
                alive = (ends > step).unsqueeze(1)
                following = self.cell(x[step], state, own, direction)
                made[step] = torch.where(alive, following[0], torch.zeros_like(following[0]))
                state = tuple(torch.where(alive, new, old) for new, old in zip(following, state, strict=True))
            outputs.append(torch.stack(made) if steps else x.new_zeros(0, batch, self.hidden))
            last.append(state)
        stacked = (torch.stack(parts) for parts in zip(*last, strict=True))
        return torch.stack(outputs, dim=1), *stacked

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def _activation(self, direction: int, index: int, x: Tensor) -> Tensor:
        name = self.activations[direction * len(self.usual) + index]
        return ACTIVATIONS[name](self._clipped(x))


class LSTM(Recurrent):
    """Gates in the order input, output, forget, cell. `peepholes` (directions, 3 × hidden): input, output, forget."""

    gates = 4
    torch_order = (0, 2, 3, 1)
    usual = ("sigmoid", "tanh", "tanh")

    def __init__(
        self, *weights: Any, peepholes: nn.Parameter | None = None, input_forget: int = 0, **options: Any
    ) -> None:
        super().__init__(*weights, **options)
        self.peepholes = peepholes
        self.input_forget = input_forget

    @property
    def fused(self) -> bool:
        return super().fused and self.peepholes is None and not self.input_forget

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, hidden: Tensor | None = None, cell: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        return self.run(x, lengths, (hidden, cell))

    def kernel(self, x: Tensor, states: list[Tensor], weights: list[Tensor], bidirectional: bool) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch._VF.lstm(  # type: ignore[attr-defined]  # noqa: SLF001 (what nn.LSTM calls)
            x, states, weights, True, 1, 0.0, False, bidirectional, False
        )
        return result

    def cell(
        self, x: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor, ...], direction: int
    ) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        hidden, cell = states
        gates = x @ weight_ih.t() + hidden @ weight_hh.t() + bias_ih + bias_hh
        into, out, forget, new = gates.chunk(4, dim=1)
        peep = None if self.peepholes is None else self.peepholes[direction].chunk(3)
        if peep is not None:
            into, forget = into + peep[0] * cell, forget + peep[2] * cell
        kept_in = self._activation(direction, 0, into)
        kept = 1 - kept_in if self.input_forget else self._activation(direction, 0, forget)
        cell = kept * cell + kept_in * self._activation(direction, 1, new)
        if peep is not None:
            out = out + peep[1] * cell
        return self._activation(direction, 0, out) * self._activation(direction, 2, cell), cell


class GRU(Recurrent):
    """Gates in the order update, reset, hidden."""

    gates = 3
    torch_order = (1, 0, 2)
    usual = ("sigmoid", "tanh")

    def __init__(self, *weights: Any, linear_before_reset: int = 0, **options: Any) -> None:
        super().__init__(*weights, **options)
        self.linear_before_reset = linear_before_reset

    @property
    def fused(self) -> bool:
        return super().fused and bool(self.linear_before_reset)

    def forward(self, x: Tensor, lengths: Tensor | None = None, hidden: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.run(x, lengths, (hidden,))

    def kernel(self, x: Tensor, states: list[Tensor], weights: list[Tensor], bidirectional: bool) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch._VF.gru(  # type: ignore[attr-defined]  # noqa: SLF001 (what nn.GRU calls)
            x, states[0], weights, True, 1, 0.0, False, bidirectional, False
        )
        return result

    def cell(
        self, x: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor, ...], direction: int
    ) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        (hidden,) = states
        update_x, reset_x, new_x = (x @ weight_ih.t() + bias_ih).chunk(3, dim=1)
        update_w, reset_w, new_w = weight_hh.chunk(3)
        update_b, reset_b, new_b = bias_hh.chunk(3)
        update = self._activation(direction, 0, update_x + hidden @ update_w.t() + update_b)
        reset = self._activation(direction, 0, reset_x + hidden @ reset_w.t() + reset_b)
        if self.linear_before_reset:
            past = reset * (hidden @ new_w.t() + new_b)
        else:
            past = (reset * hidden) @ new_w.t() + new_b
        new = self._activation(direction, 1, new_x + past)
        return ((1 - update) * new + update * hidden,)


class RNN(Recurrent):
    gates = 1
    torch_order = (0,)
    usual = ("tanh",)

    def forward(self, x: Tensor, lengths: Tensor | None = None, hidden: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.run(x, lengths, (hidden,))

    def kernel(self, x: Tensor, states: list[Tensor], weights: list[Tensor], bidirectional: bool) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch._VF.rnn_tanh(  # type: ignore[attr-defined]  # noqa: SLF001 (nn.RNN calls it)
            x, states[0], weights, True, 1, 0.0, False, bidirectional, False
        )
        return result

    def cell(
        self, x: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor, ...], direction: int
    ) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        total = x @ weight_ih.t() + states[0] @ weight_hh.t() + bias_ih + bias_hh
        return (self._activation(direction, 0, total),)


class RecurrentOp(Op):
    leaf: ClassVar[type[Recurrent]]
    states: ClassVar[int] = 1
    options: ClassVar[tuple[str, ...]] = ()
    """Attributes of the op beside the common ones."""
    weights: ClassVar[dict[str, int]] = {"weight_ih": 1, "weight_hh": 1}

    def read(self, node: OnnxNode, graph: GraphBuilder) -> tuple[Value, ...]:
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
        module = self.leaf(
            graph.parameter(weight_ih),
            graph.parameter(weight_hh),
            None if bias is None else graph.parameter(bias),
            direction=direction,
            layout=node.attribute("layout", 0),
            activations=self._activations(node, directions),
            clip=node.attribute("clip"),
            **self.read_options(node, graph),
        )
        call = graph.module(node.layer(1), module, node.input(0), *node.inputs[4 : 5 + self.states])
        return graph.unpack(call, 1 + self.states)

    def read_options(self, node: OnnxNode, graph: GraphBuilder) -> dict[str, Any]:  # noqa: ARG002 (LSTM needs it)
        return {option: node.attribute(option, 0) for option in self.options}

    def _activations(self, node: OnnxNode, directions: int) -> tuple[str, ...]:
        names = tuple(name.lower() for name in node.attribute("activations", ()))
        if node.attribute("activation_alpha") or node.attribute("activation_beta"):
            raise node.refuse("activations with alpha or beta are not supported")
        if names and (len(names) != len(self.leaf.usual) * directions or not ACTIVATIONS.keys() >= set(names)):
            raise node.refuse(f"activations {list(names)} are not supported")
        return names

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module = onnx.module(node)
        assert isinstance(module, Recurrent)
        weights = [onnx.weight(node, name) for name in ("weight_ih", "weight_hh", "bias")]
        states = list(node.args[1:]) + [None] * (1 + self.states - len(node.args[1:]))
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
            activations=tuple(name.title() for name in module.activations) if unusual else None,
            **{option: getattr(module, option) for option in self.options},
        )

    def extra_weights(self, node: fx.Node, onnx: OnnxBuilder) -> list[str]:  # noqa: ARG002 (LSTM needs it)
        return []

    def macs(self, node: fx.Node) -> int:
        owner = node.graph.owning_module
        assert owner is not None
        module: Any = owner.get_submodule(str(node.target))
        source = node.args[0]
        assert isinstance(source, fx.Node)
        cells = math.prod(source.meta["shape"][:2])
        return cells * (math.prod(module.weight_ih.shape) + math.prod(module.weight_hh.shape))


@register
class LSTMOp(RecurrentOp):
    name = "LSTM"
    modules = (LSTM,)
    leaf = LSTM
    states = 2
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
    leaf = GRU
    options = ("linear_before_reset",)


@register
class RNNOp(RecurrentOp):
    name = "RNN"
    modules = (RNN,)
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
        initial = [graph.call(slice_, state, (first,), (first + directions,), (0,), (1,)) for state in states]
        call = graph.module(f"{node.layer('params')}.{layer}", module, x, None, *initial)
        output, *ends = graph.unpack(call, 1 + len(states))
        last.append(ends)
        ordered = graph.call(transpose, output, perm=(0, 2, 1, 3))
        x = graph.call(reshape, ordered, (0, 0, directions * module.hidden), allowzero=0)
    if node.get("batch_first"):
        x = graph.call(transpose, x, perm=(1, 0, 2))
    return x, *(graph.call(concat, *(ends[place] for ends in last), axis=0) for place in range(len(states)))


def onnx_gates(rows: Tensor, leaf: type[Recurrent]) -> Tensor:
    """Rows of PyTorch's gate order in ONNX's."""
    gates = rows.unflatten(0, (leaf.gates, -1))
    return gates[[leaf.torch_order.index(gate) for gate in range(leaf.gates)]].flatten(0, 1)
