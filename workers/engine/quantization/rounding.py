"""AdaRound: learn for each weight whether it is rounded up or down, layer by layer (Nagel et al., 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from workers.engine.constraints import raw_parameter, tied_parameters
from workers.engine.graph import Graph
from workers.engine.quantization.grid import IntegerGrid, grid_of, has_few_values
from workers.engine.quantization.insertion import Quantized
from workers.engine.quantization.leaves import without_constraints
from workers.engine.quantization.lockstep import walk
from workers.engine.quantization.placement import trait_of

ITERATIONS = 500
BATCH = 32
LEARNING_RATE = 1e-2
REGULARIZATION = 0.01
WARM_UP = 0.2
"""Share of the iterations before the roundings are pushed to a decision."""
STRETCH = 1.2
"""The rectified sigmoid reaches from -0.1 to 1.1, so that 0 and 1 are reached exactly."""


def learn_rounding(
    graph: Graph,
    quantized: Quantized,
    batches: Sequence[Sequence[Tensor]],
    seed: int,
    progress: Callable[[float], None],
) -> int:
    """Round each layer's weights so that its output comes nearest to the float one. Returns how many were learned.

    Weights that another layer uses too are rounded to nearest: what helps one may hurt the other. So are those that
    earlier steps left only a few values, which rounding up here and down there would make more.
    """
    generator = torch.Generator().manual_seed(seed)
    float_twin = {copied: node for node, copied in quantized.twin.items()}
    tied = tied_parameters(quantized.graph.module)
    learned = visited = 0

    def learn(node: fx.Node, source: Tensor, wanted: Tensor) -> None:
        nonlocal learned, visited
        trait = trait_of(node)
        layer = quantized.graph.module.get_submodule(str(node.target))
        original = graph.module.get_submodule(str(float_twin[node].target))
        names = [name for name in trait.weights or {} if raw_parameter(layer, name) not in tied] if trait else []
        names = [name for name in names if not has_few_values(layer, name)]
        for name in names:
            grid = grid_of(layer, name)
            if grid is not None:
                weight = _learned(original, layer, name, grid, (source, wanted), generator)
                raw_parameter(layer, name).data.copy_(weight)
        learned += bool(names)
        visited += 1
        progress(visited / len(quantized.layers))

    walk(graph, quantized, batches, learn)
    return learned


def _learned(
    original: nn.Module,
    layer: nn.Module,
    name: str,
    grid: IntegerGrid,
    data: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """The layer's weight on its grid, each value rounded up or down as its output needs it. Zeros stay zero."""
    source, wanted = data
    plain = without_constraints(layer)
    weight = getattr(original, name).detach()
    scaled = weight / grid.scale
    floor = scaled.floor()
    part = (scaled - floor).clamp(0.01, 0.99)
    start = torch.log((part + (STRETCH - 1) / 2) / (1 + (STRETCH - 1) / 2 - part))
    with torch.enable_grad():
        choice = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([choice], lr=LEARNING_RATE)
        for step in range(ITERATIONS):
            picked = torch.randperm(len(source), generator=generator)[:BATCH].to(source.device)
            up = _rectified(choice)
            soft = (floor + up).clamp(-grid.limit, grid.limit) * grid.scale
            output = functional_call(plain, {name: soft}, (source[picked],))
            loss = (output - wanted[picked]).square().mean() / wanted.square().mean().clamp_min(1e-12)
            done = step / ITERATIONS
            if done > WARM_UP:
                sharpness = 20 - 18 * (done - WARM_UP) / (1 - WARM_UP)
                loss = loss + REGULARIZATION * (1 - (2 * up - 1).abs().pow(sharpness)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    rounded = floor + (_rectified(choice.detach()) >= 0.5).to(floor)
    rounded = torch.where(weight == 0, torch.zeros_like(rounded), rounded).clamp(-grid.limit, grid.limit)
    before = (layer(source) - wanted).square().mean()
    after = (functional_call(plain, {name: rounded * grid.scale}, (source,)) - wanted).square().mean()
    return rounded * grid.scale if after < before else getattr(layer, name).detach()


def _rectified(choice: Tensor) -> Tensor:
    return (torch.sigmoid(choice) * STRETCH - (STRETCH - 1) / 2).clamp(0, 1)
