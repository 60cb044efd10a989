"""Recurrent leaves as torch's own layers, which torch.export keeps whole and everybody knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workers.engine.ops.recurrent_cells import GRU, LSTM, RNN, Recurrent


class Called(nn.RNNBase):
    """Called like the leaf: x (time, batch, in) or batch first, states; gives (time, directions, batch, hidden)."""

    backwards: bool
    layout: int

    def forward(self, x: Tensor, _: None = None, *states: Tensor | None) -> tuple[Tensor, ...]:
        directions = 2 if self.bidirectional else 1
        if self.layout:
            x = x.transpose(0, 1)
            states = tuple(None if state is None else state.transpose(0, 1) for state in states)
        zeros = x.new_zeros(directions, x.shape[1], self.hidden_size)
        filled = [zeros if state is None else state for state in states]
        two = self.mode == "LSTM"
        filled += [zeros] * ((2 if two else 1) - len(filled))
        whole: Any = super()  # the layer of torch beside this class
        output, last = whole.forward(x.flip(0) if self.backwards else x, tuple(filled) if two else filled[0])
        output = output.unflatten(2, (directions, self.hidden_size)).transpose(1, 2)
        output = output.flip(0) if self.backwards else output
        ends = last if isinstance(last, tuple) else (last,)
        if self.layout:
            return output.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in ends)
        return output, *ends


class TorchLSTM(Called, nn.LSTM):  # type: ignore[misc]  # called otherwise, on purpose
    pass


class TorchGRU(Called, nn.GRU):  # type: ignore[misc]  # as above
    pass


class TorchRNN(Called, nn.RNN):  # type: ignore[misc]  # as above
    pass


KINDS: dict[type[Recurrent], Any] = {LSTM: TorchLSTM, GRU: TorchGRU, RNN: TorchRNN}


def fused_layer(leaf: Recurrent) -> nn.Module | None:
    """The same layer as torch's own; None where torch has no such cell."""
    if not leaf.fused:
        return None
    directions, _, width = leaf.weight_ih.shape
    layer = KINDS[type(leaf)](width, leaf.hidden, bias=leaf.bias is not None, bidirectional=directions == 2)
    layer.backwards, layer.layout = leaf.direction == "reverse", leaf.layout
    for direction in range(directions):
        end = "_l0_reverse" if direction else "_l0"
        parts = {"weight_ih": leaf.weight_ih[direction], "weight_hh": leaf.weight_hh[direction]}
        if leaf.bias is not None:
            parts["bias_ih"], parts["bias_hh"] = leaf.bias[direction].chunk(2)
        for name, rows in parts.items():
            ordered = rows.detach().unflatten(0, (leaf.gates, leaf.hidden))[list(leaf.torch_order)].flatten(0, 1)
            with torch.no_grad():
                getattr(layer, name + end).copy_(ordered)
    return layer.eval()
