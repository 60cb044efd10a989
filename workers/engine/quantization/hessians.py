"""What the inputs of a layer look like to its weights: the sums of x xᵀ by which GPTQ weighs errors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

from workers.engine.ops.convolution import Conv, same_pads, torch_pads
from workers.engine.ops.linear import Linear
from workers.engine.ops.recurrent_cells import Recurrent

MOST_ROWS = 1 << 15
"""Inputs of a batch, positions of a picture included, that are looked at: more say the same."""


def has_hessian(module: nn.Module) -> bool:
    return isinstance(module, (Linear, Conv, Recurrent))


def of_inputs(module: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """(groups, values, values) for what a layer reads: linear (…, in), Conv (batch, in, …), recurrent (…, in)."""
    total: Tensor | None = None
    for x in batches:
        rows = _patches(module, x) if isinstance(module, Conv) else x.reshape(1, -1, x.shape[-1])
        rows = _some(rows.float())
        found = rows.transpose(1, 2) @ rows
        total = found if total is None else total.add_(found)
    if total is None:
        raise ValueError("there are no inputs")
    return total


def of_states(module: Recurrent, outputs: Iterable[Tensor]) -> Tensor:
    """(directions, hidden, hidden) for the states that a recurrent layer reads at each step: its last outputs.

    Outputs are (time, directions, batch, hidden), or (batch, time, directions, hidden) with layout 1. What a GRU
    does to the state before it reads it (`linear_before_reset` 0) is left out of account.
    """
    total: Tensor | None = None
    for output in outputs:
        steps = output.permute(1, 2, 0, 3) if module.layout else output
        read = []
        for direction in range(steps.shape[1]):
            backwards = module.direction == "reverse" or direction == 1
            own = steps[1:, direction] if backwards else steps[:-1, direction]
            read.append(own.reshape(-1, own.shape[-1]))
        rows = _some(torch.stack(read).float())
        found = rows.transpose(1, 2) @ rows
        total = found if total is None else total.add_(found)
    if total is None:
        raise ValueError("there are no outputs")
    return total


def _some(rows: Tensor) -> Tensor:
    """At most so many rows (groups, rows, values), evenly taken."""
    if rows.shape[1] <= MOST_ROWS:
        return rows
    return rows[:, torch.linspace(0, rows.shape[1] - 1, MOST_ROWS, device=rows.device).long()]


def _patches(conv: Conv, x: Tensor) -> Tensor:
    """What each position of the kernel covers: (groups, positions, in / groups × kernel)."""
    kernel, rank = conv.weight.shape[2:], conv.rank
    pads = conv.pads
    if conv.auto_pad.startswith("SAME"):
        upper = conv.auto_pad == "SAME_UPPER"
        pads = same_pads(x.shape[2:], kernel, conv.stride, conv.dilation, upper=upper)
    x = F.pad(x, torch_pads(pads))
    most = max(1, MOST_ROWS // max(1, x.shape[2:].numel()))
    x = x[torch.linspace(0, len(x) - 1, min(len(x), max(most, 8)), device=x.device).long()]
    for axis, (size, step, spread) in enumerate(zip(kernel, conv.stride, conv.dilation, strict=True), start=2):
        x = x.unfold(axis, (size - 1) * spread + 1, step)[..., ::spread]
    # (batch, groups × in, *positions, *kernel)
    x = x.unflatten(1, (conv.groups, -1)).movedim(1, 0)
    inside = (2, *range(3 + rank, 3 + 2 * rank))
    positions = (1, *range(3, 3 + rank))
    ordered = x.permute(0, *positions, *inside)
    return ordered.flatten(1, rank + 1).flatten(2)
