"""Which weights a step brings to few bits by training, and the one constraint of weights that layers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.constraints import Constraint, raw_parameter, stored_bits
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.quantization.edges import edge_layers
from workers.engine.quantization.storage import channel_axes
from workers.engine.selection import tell_untouched

NODES = 1024
"""Bytes that unfolding a weight takes in a file, about: what saves less is left as it is."""


@dataclass(frozen=True)
class Weight:
    """A weight of a layer. `edge`: the layer is the model's first or last."""

    layer: Layer
    name: str
    edge: bool

    @property
    def value(self) -> Tensor:
        return self.layer.weights[self.name].detach()

    @property
    def axes(self) -> tuple[int, ...]:
        """Along which each place has a scale of its own."""
        return channel_axes(self.layer, self.name)


def weights_for(layers: Iterable[Layer], graph: Graph, context: Context, bits: Callable[[bool], float]) -> list[Weight]:
    """The weights of these layers that can be stored in so many bits, which are asked for by being at an edge.

    Says why others are left alone: those, for one, that take no more bits now.
    """
    edges = edge_layers(graph)
    found = []
    for layer in layers:
        reasons = {}
        for name in layer.weights:
            weight = Weight(layer, name, layer.name in edges)
            reason = _why_not(weight, bits(weight.edge))
            if reason is None:
                found.append(weight)
            else:
                reasons[name] = reason
        tell_untouched(context, layer, reasons)
    return found


def none_left(context: Context) -> StepError:
    """What is raised where no weight can be brought to fewer bits."""
    told = "; ".join(f"{name}: {reason}" for name, reason in context.untouched.items())
    return StepError(f"none of the selected layers can be brought to fewer bits ({told})")


def _why_not(weight: Weight, bits: float) -> str | None:
    value = weight.value
    stored = stored_bits(weight.layer.module, weight.name)
    if not value.isfinite().all():
        raise StepError(f"{weight.layer.name} holds weights that are not numbers: repair the model first")
    if bits >= 32:
        return "it is the first or the last layer, which suffer most: keep_edges: false includes it"
    if stored <= bits:
        return f"it is stored in {stored:g} bits already"
    if value.dtype != torch.float32:
        return f"its weights are {value.dtype}, not float32".replace("torch.", "")
    if value.dim() < 2:
        return "its weights are a vector: too small to be worth it"
    if value.numel() * (32 - bits) / 8 <= NODES:
        return f"it has only {value.numel()} weights: unfolding them takes more bytes than is saved"
    return None


def constrain_all(weights: list[Weight], make: Callable[[Weight], Constraint]) -> list[Constraint]:
    """Give each weight its constraint, the same one where layers share a weight. Returns each once."""
    made: dict[Tensor, Constraint] = {}
    for weight in weights:
        raw = raw_parameter(weight.layer.module, weight.name)
        if raw not in made:
            made[raw] = make(weight)
        weight.layer.constrain(weight.name, made[raw])
    return list(made.values())
