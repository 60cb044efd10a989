"""What input features are worth to a graph's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.importance.units import Units
from workers.engine.interface.features import Features
from workers.engine.quantization.simulation import relative_error

Batches = Sequence[Sequence[Tensor]]


@torch.no_grad()
def permuted(graph: Graph, features: Sequence[Features], batches: Batches, context: Context) -> list[Tensor]:
    """How far the answers move when one feature's values are shuffled among the examples (Breiman, 2001)."""
    wanted = [graph(*batch) for batch in batches]
    total, done = sum(len(one.positions) for one in features), 0
    worth = []
    for one in features:
        leaf = graph.module.get_submodule(one.leaf)
        scores = torch.zeros(len(one.positions), dtype=torch.float64)
        for unit, places in enumerate(one.positions):
            generator = torch.Generator().manual_seed(context.seed)
            hook = leaf.register_forward_hook(_shuffle(one.axis, places, generator))
            try:
                errors = [relative_error(graph(*b), w) for b, w in zip(batches, wanted, strict=True)]
            finally:
                hook.remove()
            scores[unit] = max(errors)
            done += 1
            context.progress(0.6 * done / total, "measuring what each feature is worth")
        worth.append(scores)
    return worth


@torch.no_grad()
def weighed(graph: Graph, features: Sequence[Features], batches: Batches) -> list[Tensor]:
    """The size of the weights that read a feature, times its standard deviation (1 where there are no examples)."""
    worth = []
    for one in features:
        size = torch.stack([rows.square().sum(1).cpu() for rows in Units(one.group, graph).weights("takes")]).sum(0)
        worth.append(size.sqrt().double() * _spread(graph, one, batches))
    return worth


def _spread(graph: Graph, one: Features, batches: Batches) -> Tensor:
    """Of each feature over the examples and all its places."""
    seen: list[Tensor] = []
    hook = graph.module.get_submodule(one.leaf).register_forward_hook(lambda *call: seen.append(call[2].cpu()))
    try:
        for batch in batches:
            graph(*batch)
    finally:
        hook.remove()
    if not seen:
        return torch.ones(len(one.positions), dtype=torch.float64)
    values = torch.cat([x.movedim(one.axis, 0).flatten(1) for x in seen], 1).double()
    return torch.stack([values[places].std(correction=0) for places in one.positions])


def _shuffle(axis: int, places: Tensor, generator: torch.Generator) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(_leaf: nn.Module, _inputs: Any, x: Tensor) -> Tensor:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        along = places.to(x.device)
        return x.index_copy(axis, along, x.index_select(axis, along)[order])

    return hook
