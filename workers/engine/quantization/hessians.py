"""What the inputs of a layer look like to its weights: the sums of x xᵀ by which GPTQ weighs errors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

from workers.engine.ops.convolution import Conv, same_pads, torch_pads
from workers.engine.ops.linear import Linear
from workers.engine.ops.recurrent_cells import Recurrent

MOST_ROWS, MOST_VALUES = 1 << 15, 1 << 26
"""Inputs of a batch, positions of a picture included, that are looked at: more say the same. And their values."""
FEWEST = 8
"""Pictures that are looked at in any case."""
WIDEST = 8192
"""Values of a row of weights up to which their matrix of products is made and inverted: half a gigabyte."""


def has_hessian(module: nn.Module, name: str) -> bool:
    """Whether it is known what a weight of the module is multiplied with."""
    weight: Tensor = getattr(module, name)
    inside = weight.shape[-1] if isinstance(module, Recurrent) else weight[0].numel()
    return isinstance(module, (Linear, Conv, Recurrent)) and inside <= WIDEST


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
    most = _most(rows.shape[0] * rows.shape[2])
    return rows if rows.shape[1] <= most else rows[:, _evenly(rows.shape[1], most, rows.device)]


def _most(values: int) -> int:
    """Rows of so many values that are looked at."""
    return min(MOST_ROWS, max(1, MOST_VALUES // values))


def _evenly(count: int, most: int, device: torch.device) -> Tensor:
    """The places of so many of `count`."""
    return torch.linspace(0, count - 1, min(count, most), device=device).round().long()


def _patches(conv: Conv, x: Tensor) -> Tensor:
    """What each position of the kernel covers: (groups, positions, in / groups × kernel)."""
    kernel, rank = conv.weight.shape[2:], conv.rank
    pads = conv.pads
    if conv.auto_pad.startswith("SAME"):
        upper = conv.auto_pad == "SAME_UPPER"
        pads = same_pads(x.shape[2:], kernel, conv.stride, conv.dilation, upper=upper)
    x = F.pad(x, torch_pads(pads))
    most = _most(conv.groups * conv.weight[0].numel()) // x.shape[2:].numel()
    x = x[_evenly(len(x), max(most, FEWEST), x.device)]
    for axis, (size, step, spread) in enumerate(zip(kernel, conv.stride, conv.dilation, strict=True), start=2):
        x = x.unfold(axis, (size - 1) * spread + 1, step)[..., ::spread]
    # (batch, groups × in, *positions, *kernel)
    x = x.unflatten(1, (conv.groups, -1)).movedim(1, 0)
    inside = (2, *range(3 + rank, 3 + 2 * rank))
    positions = (1, *range(3, 3 + rank))
    ordered = x.permute(0, *positions, *inside)
    return ordered.flatten(1, rank + 1).flatten(2)
