"""Cross-layer equalization: move range from channels that have much to the weights that read them (Nagel et al., 2019).

Between two layers, channel i may be divided by any s_i > 0 if the next layer's weights for it are multiplied by s_i,
as long as every op in between scales with its input. Which ops do is not listed anywhere: it is tried on real values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from workers.engine.constraints import Mask, constraints_of, raw_parameter, tied_parameters
from workers.engine.graph import Graph
from workers.engine.quantization.nodes import module_of
from workers.engine.quantization.placement import trait_of

SWEEPS = 3
"""A layer in the middle belongs to two pairs, so they settle only after some rounds."""
LARGEST_STEP = 16.0
"""A channel is scaled by at most this much at a time, so that a dead one is not blown up."""


@dataclass(frozen=True)
class Pair:
    first: fx.Node
    last: fx.Node
    """Whose output the second layer reads: the first itself, or an op that scales with it."""
    second: fx.Node


@dataclass
class Outcome:
    pairs: int = 0
    skipped: int = 0
    """Layers without a partner: several readers, or something in between that does not scale."""


def is_layer(node: fx.Node) -> bool:
    """A leaf with a weight, its output channels in front."""
    if node.op != "call_module":
        return False
    trait = trait_of(node)
    if trait is None or not trait.inputs:
        return False
    return trait.weights == {"weight": 0}


def may_scale(module: nn.Module, tied: frozenset[nn.Parameter]) -> bool:
    """Masks stay true when a weight is scaled; a grid or a codebook would not, nor would another user of the weight."""
    if any(parameter in tied for parameter in module.parameters()):
        return False
    return all(isinstance(constraint, Mask) for constraint in constraints_of(module, "weight"))


def input_channels(weight: Tensor, groups: int) -> Tensor:
    """A view of the weight as (groups, out / groups, in / groups, …); input channels count through the groups."""
    return weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])


def largest_by_input(module: Any) -> Tensor:
    """The largest weight that reads each input channel, of shape (in,)."""
    weight, groups = module.weight.detach(), getattr(module, "groups", 1)
    grouped = input_channels(weight, groups).abs().amax(1)
    return grouped.flatten(2).amax(2).flatten() if grouped.dim() > 2 else grouped.flatten()


@torch.no_grad()
def scale_input(module: nn.Module, scale: Tensor) -> None:
    """Multiply what reads each input channel; `scale` of shape (in,)."""
    raw, groups = raw_parameter(module, "weight"), getattr(module, "groups", 1)
    grouped = input_channels(raw.data, groups)
    grouped.mul_(scale.view(groups, 1, -1, *([1] * (raw.dim() - 2))))


@torch.no_grad()
def scale_output(module: nn.Module, scale: Tensor) -> None:
    """Multiply each output channel; `scale` of shape (out,)."""
    raw = raw_parameter(module, "weight")
    raw.data.mul_(scale.view(-1, *([1] * (raw.dim() - 1))))
    if getattr(module, "bias", None) is not None:
        raw_parameter(module, "bias").data.mul_(scale)


def channel_axis(node: fx.Node, value: Tensor) -> int:
    """Where the channels of a layer's input and output are: behind the batch for convolutions, last for matrices."""
    return 1 if module_of(node).weight.dim() > 2 else value.dim() - 1


def along(vector: Tensor, axis: int, rank: int) -> Tensor:
    return vector.view([-1 if position == axis else 1 for position in range(rank)])


def equalize(graph: Graph, values: Mapping[fx.Node, Any]) -> Outcome:
    """Scale all pairs of layers in place. The graph answers as before, up to rounding.

    `values`: the result of every node on a few examples.
    """
    return _Equalizer(graph, values).equalize()


class _Equalizer:
    def __init__(self, graph: Graph, values: Mapping[fx.Node, Any]) -> None:
        self._graph = graph
        self._values = values
        self._tied = tied_parameters(graph.module)

    @torch.no_grad()
    def equalize(self) -> Outcome:
        outcome = Outcome()
        pairs = []
        for node in self._graph.module.graph.nodes:
            if not is_layer(node) or not may_scale(module_of(node), self._tied):
                continue
            pair = self._pair(node)
            if pair is None:
                outcome.skipped += 1
            else:
                pairs.append(pair)
        maps = [self._channel_map(pair) for pair in pairs]
        for _ in range(SWEEPS):
            for pair, spread in zip(pairs, maps, strict=True):
                if spread is not None:
                    _equalize(module_of(pair.first), module_of(pair.second), spread)
        outcome.pairs = sum(spread is not None for spread in maps)
        outcome.skipped += sum(spread is None for spread in maps)
        return outcome

    def _pair(self, first: fx.Node) -> Pair | None:
        last = first
        while len(last.users) == 1:
            user = next(iter(last.users))
            if is_layer(user):
                same = user.args[0] is last and may_scale(module_of(user), self._tied)
                return Pair(first, last, user) if same else None
            if user.op != "call_function" or not isinstance(self._values.get(user), Tensor):
                return None
            last = user
        return None

    def _channel_map(self, pair: Pair) -> Tensor | None:
        """For each input channel of the second layer, the output channel of the first that it stems from.

        None where something in between does not scale with its input.
        """
        start = self._values[pair.first]
        axis = channel_axis(pair.first, start)
        channels = start.shape[axis]
        generator = torch.Generator().manual_seed(0)
        scale = (0.5 + 1.5 * torch.rand(channels, generator=generator)).to(start)
        index = along(torch.arange(channels, device=start.device, dtype=start.dtype) + 1, axis, start.dim())
        plain, scaled, numbered = start, start * along(scale, axis, start.dim()), index.expand_as(start).contiguous()
        ones = torch.ones_like(start)
        node = pair.first
        while node is not pair.last:
            source, node = node, next(iter(node.users))
            plain, scaled, numbered, ones = (
                self._again(node, source, value) for value in (plain, scaled, numbered, ones)
            )
        axis = channel_axis(pair.second, plain)
        sources = (numbered / ones).transpose(0, axis).flatten(1)
        origin = sources[:, :1].round()
        if not bool(torch.isfinite(sources).all()) or bool(((sources - origin).abs() > 0.01).any()):
            return None
        channel = origin.flatten().long() - 1
        if int(channel.min()) < 0 or int(channel.max()) >= channels:
            return None
        expected = plain * along(scale[channel], axis, plain.dim())
        return channel if torch.allclose(scaled, expected, rtol=1e-4, atol=1e-6) else None

    def _again(self, node: fx.Node, source: fx.Node, value: Tensor) -> Tensor:
        """What a function would return for another value of one of its arguments."""
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda argument: value if argument is source else self._values[argument]
        )
        result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return result


def _equalize(first: Any, second: Any, channel: Tensor) -> None:
    written = first.weight.detach().abs().flatten(1).amax(1)
    read = torch.zeros_like(written).scatter_reduce_(0, channel, largest_by_input(second), "amax")
    alive = (written > 0) & (read > 0)
    scale = torch.where(alive, (read / written).sqrt(), torch.ones_like(read)).clamp(1 / LARGEST_STEP, LARGEST_STEP)
    scale_output(first, scale)
    scale_input(second, 1 / scale[channel])
