"""First and second moments of what layers take and give on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.quantization.nodes import module_of

ROWS = 16_384
"""Of a layer, all batches together, by which its moments are told; positions are rows too."""
WIDEST = 4096
"""Of what takes more channels, a second moment takes too much memory: all its inputs count alike."""


@dataclass
class Moments:
    """Sums over rows of so many channels."""

    count: int
    first: Tensor
    second: Tensor

    @property
    def mean(self) -> Tensor:
        return self.first / self.count

    def matrix(self, *, centred: bool) -> Tensor:
        """The covariance, or the second moment where a mean cannot be made up for by a bias."""
        second = self.second / self.count
        return second - torch.outer(self.mean, self.mean) if centred else second


@dataclass
class Seen:
    """`made`: of convolutions only. Both None where nothing was seen."""

    given: Moments | None = None
    made: Moments | None = None


@torch.no_grad()
def observe(graph: Graph, layers: Iterable[Layer], batches: Sequence[Sequence[Tensor]]) -> dict[str, Seen]:
    """Of each layer by its name. Where it makes several things, the first is meant.

    Raises StepError where what is seen are no numbers.
    """
    seen: dict[str, Seen] = {}
    hooks = []
    for layer in layers:
        own = seen[layer.name] = Seen()
        hooks.append(module_of(layer.node).register_forward_hook(_watch(own, len(batches))))
    try:
        for inputs in batches:
            graph(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for name, own in seen.items():
        if not all(bool(found.second.isfinite().all()) for found in (own.given, own.made) if found is not None):
            raise StepError(f"what {name!r} takes or gives is not finite on the calibration data; check its values")
    return seen


def channels_last(leaf: nn.Module, value: Tensor) -> Tensor:
    """(rows, channels) of what a layer takes or gives."""
    last = value.movedim(1, -1) if isinstance(leaf, (Conv, ConvTranspose)) else value
    return last.flatten(0, -2)


def _watch(seen: Seen, batches: int) -> Callable[[nn.Module, Any, Any], None]:
    generator = torch.Generator().manual_seed(0)

    def hook(leaf: nn.Module, inputs: Any, result: Any) -> None:
        made = result[0] if isinstance(result, tuple) else result
        rows = channels_last(leaf, inputs[0])
        if not rows.is_floating_point() or rows.shape[1] > WIDEST:
            return
        seen.given = _added(seen.given, rows, ROWS // batches, generator)
        if isinstance(leaf, (Conv, ConvTranspose)):
            seen.made = _added(seen.made, channels_last(leaf, made), ROWS // batches, generator)

    return hook


def _added(known: Moments | None, rows: Tensor, most: int, generator: torch.Generator) -> Moments:
    if len(rows) > most:
        rows = rows[torch.randperm(len(rows), generator=generator)[: max(1, most)].to(rows.device)]
    rows = rows.double()
    first, second = rows.sum(0), rows.T @ rows
    if known is None:
        return Moments(len(rows), first, second)
    return Moments(known.count + len(rows), known.first + first, known.second + second)
