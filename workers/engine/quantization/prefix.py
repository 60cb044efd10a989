"""Walks through a graph and quantizes each layer on the inputs that the layers before it, quantized, give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from workers.engine.graph import Layer
from workers.engine.ops.base import source_of
from workers.engine.ops.recurrent_cells import Recurrent
from workers.engine.quantization import hessians
from workers.engine.quantization.lockstep import Steps
from workers.engine.quantization.nodes import module_of
from workers.engine.quantization.weight_only import Quantizer


@torch.no_grad()
def quantize_in_order(
    quantizer: Quantizer,
    chosen: Mapping[str, tuple[Layer, Sequence[str]]],
    batches: Sequence[Sequence[Tensor]],
    progress: Callable[[float], None],
) -> None:
    """`chosen`: by the target of a layer's node, the layer and the names of its weights to quantize."""
    module = quantizer.graph.module
    steps, left = Steps(module, batches), dict(chosen)
    for node in module.graph.nodes:
        found = left.pop(str(node.target), None) if node.op == "call_module" else None
        if found is not None:
            progress(1 - (len(left) + 1) / len(chosen))
            _quantize(quantizer, *found, node, steps)
        if not left:
            return
        steps.run(node)
        steps.forget(node)


def _quantize(quantizer: Quantizer, layer: Layer, names: Sequence[str], node: fx.Node, steps: Steps) -> None:
    module = module_of(node)
    for name in names:
        if not hessians.has_hessian(module, name):
            quantizer.quantize(layer, name)
        elif isinstance(module, Recurrent) and name == "weight_hh":
            quantizer.quantize(layer, name, hessians.of_states(module, _answers(module, node, steps)))
        else:
            quantizer.quantize(layer, name, hessians.of_inputs(module, steps.values[source_of(node)]))


def _answers(module: Recurrent, node: fx.Node, steps: Steps) -> list[Any]:
    """The sequences that a recurrent layer gives now, one for each batch."""
    batches = range(len(steps.values[source_of(node)]))
    found = []
    for batch in batches:
        args, kwargs = steps.arguments(node, batch)
        found.append(module(*args, **kwargs)[0])
    return found
