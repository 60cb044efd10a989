"""The tensors that a graph holds, by the users' names for them: the layer's name and the parameter's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from workers.engine.constraints import raw_parameter
from workers.engine.graph import Graph
from workers.engine.ops.normalization import BatchNorm

DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
"""Names such as `stem.0.weight`; others are an exporter's own."""
COUNTERS = {(BatchNorm, "num_batches_tracked")}
"""Of no use outside of training."""


@dataclass(frozen=True)
class Held:
    """A tensor of the graph: the attribute `name` of `owner`."""

    owner: nn.Module
    name: str
    node: fx.Node
    """The first that uses it."""

    @property
    def value(self) -> Tensor:
        """As the graph uses it, constraints applied."""
        value: Tensor = getattr(self.owner, self.name)
        return value.detach()

    def replace(self, tensor: Tensor) -> None:
        """Put values of the same shape in its place; tied weights change with it."""
        with torch.no_grad():
            raw_parameter(self.owner, self.name).copy_(tensor)


def held_tensors(graph: Graph) -> dict[str, Held]:
    """Every parameter and buffer by its name in the file, or by `layer.parameter` where an exporter made that up.

    Tied tensors come once.
    """
    found: dict[str, Held] = {}
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            held = Held(graph.module.get_submodule(owner), name, node)
            found.setdefault(str(node.meta.get("name", node.target)), held)
        elif node.op == "call_module":
            module = graph.module.get_submodule(str(node.target))
            layer = str(node.meta.get("layer", node.target))
            stored = node.meta.get("names", {})
            names = list(_own(module))
            for name in names:
                own = stored.get(name, "")
                last = own.rpartition(".")[2]  # writers store equal tensors once, under the name of the first
                users = own if DOTTED.fullmatch(own) and (last == name or last not in names) else f"{layer}.{name}"
                found.setdefault(users, Held(module, name, node))
    return found


def _own(module: nn.Module) -> Iterator[str]:
    if parametrize.is_parametrized(module):
        yield from module.parametrizations  # type: ignore[misc]  # a ModuleDict
    yield from (name for name, _ in module.named_parameters(recurse=False))
    for name, _ in module.named_buffers(recurse=False):
        if not any(isinstance(module, kind) and name == counter for kind, counter in COUNTERS):
            yield name
