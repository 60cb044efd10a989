"""Which layers suffer most from few bits for their size: those are stored in 8."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from workers.engine.constraints import raw_parameter
from workers.engine.context import Context
from workers.engine.graph import Graph, Layer
from workers.engine.quantization.nodes import calls_of
from workers.engine.quantization.sensitivity import ROUNDS
from workers.engine.quantization.simulation import Simulation
from workers.engine.quantization.weight_only import Quantizer

WIDE = 8


def widen_worst(
    before: Graph,
    quantizer: Quantizer,
    layers: Mapping[str, Layer],
    simulation: Simulation,
    bound: float,
    context: Context,
) -> None:
    """Store layers in 8 bits until the outputs' relative error is within the bound.

    `before`: the graph as it was, in which the simulation runs; `layers`: what was quantized, by target.
    """
    error = first = simulation.error_of(quantizer.graph)
    if first <= bound or quantizer.options.width == WIDE:
        return
    harm: dict[str, float] = {}
    for target in layers:
        module = quantizer.graph.module.get_submodule(target)
        node = next(node for node in before.module.graph.nodes if node.op == "call_module" and node.target == target)
        alone = simulation.error_of_leaves(dict.fromkeys(calls_of(node), module))
        harm[target] = alone**2 / sum(raw.numel() for raw in _raws(quantizer, module))
    worst_first = sorted(harm, key=harm.__getitem__, reverse=True)
    portion = max(1, math.ceil(len(worst_first) / ROUNDS))
    wide: list[str] = []
    for start in range(0, len(worst_first), portion):
        for target in worst_first[start : start + portion]:
            _widen(before, quantizer, target)
            wide.append(layers[target].name)
        error = simulation.error_of(quantizer.graph)
        if error <= bound:
            break
    context.notes.append(
        f"{len(wide)} of {len(layers)} layers are stored in {WIDE} bits, those that hurt most for their size: the "
        f"outputs' error went from {first:.2%} to {error:.2%}, largest_error is {bound:.2%}: {', '.join(wide)}"
    )
    if error > bound:
        context.warnings.append(f"with every layer in {WIDE} bits the outputs still move by {error:.2%}")


def _widen(before: Graph, quantizer: Quantizer, target: str) -> None:
    module, float_module = quantizer.graph.module.get_submodule(target), before.module.get_submodule(target)
    for name in getattr(module, "parametrizations", {}):
        raw = raw_parameter(module, name)
        if raw in quantizer.grids:
            quantizer.widen(raw, getattr(float_module, name).detach())


def _raws(quantizer: Quantizer, module: nn.Module) -> list[nn.Parameter]:
    names = getattr(module, "parametrizations", {})
    return [raw for raw in (raw_parameter(module, name) for name in names) if raw in quantizer.grids]
