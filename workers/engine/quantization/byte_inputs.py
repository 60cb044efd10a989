"""Bytes that callers send are integers on a grid already: a layer that computes in integers reads them as they are."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from workers.engine.constraints import constraints_of
from workers.engine.graph import Graph
from workers.engine.ops.base import source_of
from workers.engine.ops.quantized import dequantize
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.grid import BiasGrid
from workers.engine.quantization.nodes import calls_of, module_of
from workers.engine.quantization.ranges import LEVELS
from workers.engine.transforms.adding import add_constant

NEAR = 0.1
"""How far the byte that stands for 0 may be from a whole number, in steps: half a step is what any grid rounds by."""


def read_as_grid(graph: Graph, value: fx.Node, factor: Tensor, offset: Tensor) -> bool:
    """Let byte × factor + offset be the grid on which the graph computes with an input, in place; whether it can.

    `value`: what the graph makes of the bytes, which are two nodes before it; a single reader must put it on a grid.
    """
    sent = source_of(source_of(value))
    readers = list(value.users)
    leaf = module_of(readers[0]) if len(readers) == 1 and readers[0].op == "call_module" else None
    if not isinstance(leaf, FakeQuantize) or leaf.gain != 1 or len(calls_of(readers[0])) > 1:
        return False
    if factor.numel() != 1 or offset.numel() != 1:
        return False
    step, zero = float(factor), -float(offset) / float(factor)
    if abs(zero - round(zero)) > NEAR or not 0 <= round(zero) < LEVELS:
        return False
    module = graph.module
    scale = add_constant(module, "byte_scale", torch.tensor(step))
    point = add_constant(module, "byte_zero", torch.tensor(round(zero), dtype=torch.uint8))
    with module.graph.inserting_after(sent):
        numbers = module.graph.call_function(dequantize, (sent, scale, point), {"axis": 1})
    for reader in list(readers[0].users):
        _regrid(reader, step / float(leaf.scale))
    readers[0].replace_all_uses_with(numbers)
    for node in (readers[0], value):
        module.graph.erase_node(node)
    return True


def _regrid(reader: fx.Node, change: float) -> None:
    """A bias is counted in steps of input and weight."""
    layer = module_of(reader) if reader.op == "call_module" else None
    for grid in constraints_of(layer, "bias") if layer is not None else ():
        if isinstance(grid, BiasGrid):
            grid.scale.mul_(change)
