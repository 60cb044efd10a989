"""Grids of a statically quantized graph, made trainable for a while (LSQ+, Bhalgat et al., arXiv:2004.09576)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workers.engine.constraints import constraints_of, raw_parameter
from workers.engine.graph import Graph, Layer
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.grid import BiasGrid, IntegerGrid, grid_of
from workers.engine.quantization.insertion import BIAS_HEADROOM, input_scale
from workers.engine.quantization.learned_steps import LearnedGrid, calmed, on_grid
from workers.engine.quantization.ranges import LEVELS


class LearnedFakeQuantize(FakeQuantize):
    """A fake quantizer whose scale is trained, as a factor's logarithm, and its zero point, as a share of all levels.

    A zero point at the lowest level stays there: what is read is never negative.
    """

    def __init__(self, fixed: FakeQuantize) -> None:
        super().__init__(float(fixed.scale), int(fixed.zero_point), fixed.gain)
        self.growth = nn.Parameter(torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(())) if int(fixed.zero_point) else None

    @property
    def step(self) -> Tensor:
        return self.scale * self.growth.exp()

    @property
    def zero(self) -> Tensor:
        """The zero point before it is rounded."""
        moved = self.zero_point if self.shift is None else self.zero_point + (LEVELS - 1) * self.shift
        return moved.clamp(0, LEVELS - 1)

    def forward(self, value: Tensor) -> Tensor:
        high = LEVELS - 1
        values = value.numel() // max(1, len(value) if value.dim() else 1)
        step = calmed(self.step, values, high)
        if self.shift is None:
            quantized = on_grid(value, step, 0, high)
        else:
            zero = calmed(self.zero, values, high)
            offset = (zero + (zero.round() - zero).detach()) * step
            quantized = on_grid(value + offset, step, 0, high) - offset
        return quantized if self.gain == 1 else quantized * self.gain

    @torch.no_grad()
    def settled(self) -> FakeQuantize:
        """The plain one that it has become."""
        return FakeQuantize(float(self.step), int(self.zero.round()), self.gain).to(self.scale.device)


class LearnedIntegers(LearnedGrid):
    """An integer grid whose step is trained; a byte stores a value."""

    bits = 8.0

    def __init__(self, start: Tensor, axes: tuple[int, ...], width: int, *, even: bool = True) -> None:
        super().__init__(start, axes, width, even=even)
        self.bits = 8.0
        self.folded = False

    def settled(self) -> IntegerGrid:
        """The plain one that it has become."""
        return IntegerGrid(self.scale, self.axes, self.width, folded=self.folded)


def begin_learning(graph: Graph, layers: Iterable[Layer], width_of: Callable[[Layer], int]) -> set[str]:
    """Make the steps of all activations' grids trainable, in place, and those of these layers' weights.

    Weights that are to have fewer bits than now are rounded anew. Returns the names of the layers with such grids.
    """
    found = set()
    for layer, name, place in list(_chains(layers)):
        fixed = constraints_of(layer.module, name)[place]
        if type(fixed) is IntegerGrid:
            found.add(layer.name)
            width = width_of(layer)
            learned = LearnedIntegers(fixed.scale, fixed.axes, fixed.width, even=True)
            if width < fixed.width:
                learned = LearnedIntegers.fit(_before(layer, name, place), fixed.axes, width, even=True)
            learned.folded = fixed.folded
            _put(layer, name, place, learned)
    for path, leaf in list(graph.module.named_modules()):
        if type(leaf) is FakeQuantize:
            graph.module.set_submodule(path, LearnedFakeQuantize(leaf).to(leaf.scale.device))
    return found


@torch.no_grad()
def end_learning(graph: Graph) -> None:
    """Fix all grids where they are, and let those of the biases follow."""
    for path, leaf in list(graph.module.named_modules()):
        if isinstance(leaf, LearnedFakeQuantize):
            graph.module.set_submodule(path, leaf.settled())
    for layer, name, place in list(_chains(graph.layers())):
        learned = constraints_of(layer.module, name)[place]
        if isinstance(learned, LearnedIntegers):
            _put(layer, name, place, learned.settled())
    for layer in graph.layers():
        _follow(layer)


def _follow(layer: Layer) -> None:
    trait = layer.op.quantization
    if trait is None or trait.bias is None:
        return
    grid = next((found for name in trait.weights or {} if (found := grid_of(layer.module, name))), None)
    step = input_scale(layer.node)
    for constraint in constraints_of(layer.module, trait.bias):
        if isinstance(constraint, BiasGrid) and grid is not None and step is not None:
            bias = raw_parameter(layer.module, trait.bias)
            least = bias.abs() / (step * BIAS_HEADROOM)  # int32 has to hold the bias
            grid.scale.copy_(torch.maximum(grid.scale, least.view_as(grid.scale)))
            constraint.scale.copy_(step * grid.scale.flatten())


def _chains(layers: Iterable[Layer]) -> Iterator[tuple[Layer, str, int]]:
    """Every constraint of every weight: the layer, the parameter and the place in its chain."""
    for layer in layers:
        for name in layer.weights:
            for place in range(len(constraints_of(layer.module, name))):
                yield layer, name, place


def _put(layer: Layer, name: str, place: int, constraint: LearnedIntegers | IntegerGrid) -> None:
    chain: Any = layer.module.parametrizations[name]  # type: ignore[index]  # a ModuleDict
    chain[place] = constraint.to(chain.original.device)


@torch.no_grad()
def _before(layer: Layer, name: str, place: int) -> Tensor:
    """The weight as this constraint takes it."""
    weight: Tensor = raw_parameter(layer.module, name)
    for constraint in constraints_of(layer.module, name)[:place]:
        weight = constraint(weight)
    return weight
