"""LSTM, GRU and plain RNN, as leaves with ONNX's own layout of weights.

Where the cell is the usual one, torch's fused kernels compute it, so that training is fast; else a loop does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn


@dataclass(frozen=True)
class Activation:
    name: str
    """As ONNX writes it; files may have it in any case."""
    function: Callable[..., Tensor]
    defaults: tuple[float, ...] = ()
    """Of alpha and beta, as far as it has them."""


ACTIVATIONS: dict[str, Activation] = {
    activation.name.lower(): activation
    for activation in (
        Activation("Sigmoid", torch.sigmoid),
        Activation("Tanh", torch.tanh),
        Activation("Relu", torch.relu),
        Activation("Softsign", F.softsign),
        Activation("Softplus", F.softplus),
        Activation("Affine", lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
        Activation("LeakyRelu", F.leaky_relu, (0.01,)),
        Activation("ThresholdedRelu", lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), (1.0,)),
        Activation("ScaledTanh", lambda x, alpha, beta: alpha * torch.tanh(beta * x), (1.0, 1.0)),
        Activation("HardSigmoid", lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1), (0.2, 0.5)),
        Activation("Elu", F.elu, (1.0,)),
    )
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
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor | None,
        *,
        direction: str = "forward",
        layout: int = 0,
        activations: tuple[str, ...] = (),
        activation_alpha: tuple[float, ...] = (),
        activation_beta: tuple[float, ...] = (),
        clip: float | None = None,
    ) -> None:
        """Activations in lower case, those of each direction in turn. Each that has an alpha takes the next of them."""
        super().__init__()
        self.weight_ih = weight_ih
        self.weight_hh = weight_hh
        self.bias = bias
        self.direction = direction
        self.layout = layout
        self.activations = activations or self.usual * weight_ih.shape[0]
        self.activation_alpha = activation_alpha
        self.activation_beta = activation_beta
        alphas, betas = iter(activation_alpha), iter(activation_beta)
        self._coefficients = [
            [next(given, default) for given, default in zip((alphas, betas), ACTIVATIONS[name].defaults, strict=False)]
            for name in self.activations
        ]
        self.clip = clip

    @property
    def hidden(self) -> int:
        return int(self.weight_hh.shape[2])

    @property
    def fused(self) -> bool:
        """Whether torch's kernel computes this cell."""
        return self.clip is None and self.activations == self.usual * (2 if self.direction == "bidirectional" else 1)

    kernel: Callable[[Tensor, list[Tensor], list[Tensor], bool], tuple[Tensor, ...]]
    """torch's fused kernel on x, states, flat weights, and whether there are two directions: sequence, last states."""
    cell: Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], int], tuple[Tensor, ...]]
    """One step on x (batch, in), states and weights of a direction, and which it is: the next states, hidden first."""

    def run(self, x: Tensor, lengths: Tensor | None, states: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        if self.layout:
            x = x.transpose(0, 1)
            states = tuple(None if state is None else state.transpose(0, 1) for state in states)
        weight_ih, weight_hh, bias = self.weight_ih, self.weight_hh, self.bias
        directions = weight_ih.shape[0]
        biases = weight_ih.new_zeros(directions, 2 * weight_ih.shape[1]) if bias is None else bias
        if x.dim() != 3 or x.shape[2] != weight_ih.shape[2] or x.dtype != weight_ih.dtype or not x.shape[0]:
            raise ValueError(f"an input of {x.dtype} {list(x.shape)} does not fit weights of {list(weight_ih.shape)}")
        zeros = x.new_zeros(directions, x.shape[1], self.hidden)
        filled = [zeros if state is None else state for state in states]
        if any(state.shape != zeros.shape or state.dtype != zeros.dtype for state in filled):
            raise ValueError(f"an initial state is not of {zeros.dtype} {list(zeros.shape)}")
        run = self._run_fused if self.fused and lengths is None else self._run_loop
        result = run(x, lengths, filled, (weight_ih, weight_hh, *biases.chunk(2, dim=1)))
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

    def _activation(self, direction: int, index: int, x: Tensor, *, clip: bool = True) -> Tensor:
        """ONNX Runtime does not clip what an LSTM's last activation takes."""
        place = direction * len(self.usual) + index
        return ACTIVATIONS[self.activations[place]].function(
            self._clipped(x) if clip else x, *self._coefficients[place]
        )


class LSTM(Recurrent):
    """Gates in the order input, output, forget, cell. `peepholes` (directions, 3 × hidden): input, output, forget."""

    gates = 4
    torch_order = (0, 2, 3, 1)
    usual = ("sigmoid", "tanh", "tanh")

    def __init__(self, *weights: Any, peepholes: Tensor | None = None, input_forget: int = 0, **options: Any) -> None:
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
        result: tuple[Tensor, ...] = torch._VF.lstm(  # noqa: SLF001 (what torch's own layers call)
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
        return self._activation(direction, 0, out) * self._activation(direction, 2, cell, clip=False), cell


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
        result: tuple[Tensor, ...] = torch._VF.gru(  # noqa: SLF001 (what torch's own layers call)
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
        old = reset * (hidden @ new_w.t() + new_b) if self.linear_before_reset else (reset * hidden) @ new_w.t() + new_b
        new = self._activation(direction, 1, new_x + old)
        return ((1 - update) * new + update * hidden,)


class RNN(Recurrent):
    gates = 1
    torch_order = (0,)
    usual = ("tanh",)

    def forward(self, x: Tensor, lengths: Tensor | None = None, hidden: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.run(x, lengths, (hidden,))

    def kernel(self, x: Tensor, states: list[Tensor], weights: list[Tensor], bidirectional: bool) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch._VF.rnn_tanh(  # noqa: SLF001 (what torch's own layers call)
            x, states[0], weights, True, 1, 0.0, False, bidirectional, False
        )
        return result

    def cell(
        self, x: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor, ...], direction: int
    ) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        total = x @ weight_ih.t() + states[0] @ weight_hh.t() + bias_ih + bias_hh
        return (self._activation(direction, 0, total),)
