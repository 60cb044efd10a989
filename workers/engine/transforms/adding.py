"""New leaves in a graph, under paths that nothing else has."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor, fx, nn


def add_leaf(module: fx.GraphModule, stem: str, leaf: nn.Module) -> str:
    """The path of the leaf, which is on the graph's device and in its mode."""
    taken = {name for name, _ in module.named_children()}
    path = next(path for path in (f"{stem}_{number}" for number in count()) if path not in taken)
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    module.add_submodule(path, leaf.train(module.training).to(device))
    return path


def add_constant(module: fx.GraphModule, stem: str, tensor: Tensor) -> fx.Node:
    """A constant as the first node of the graph, which no step trains."""
    taken = dict(module.named_buffers(recurse=False)).keys() | dict(module.named_parameters(recurse=False)).keys()
    name = next(name for name in (f"{stem}_{number}" for number in count()) if name not in taken)
    device = next((held.device for held in module.state_dict().values()), tensor.device)
    module.register_buffer(name, tensor.to(device))
    with module.graph.inserting_before(next(iter(module.graph.nodes))):
        node = module.graph.get_attr(name)
    node.meta["name"] = name
    return node


def results_of(module: fx.GraphModule) -> list[fx.Node]:
    """The values that a graph answers, in order."""
    return list(_output(module).args[0])  # type: ignore[arg-type]


def answer(module: fx.GraphModule, results: list[fx.Node]) -> None:
    """Answer these values."""
    _output(module).args = (tuple(results),)


def _output(module: fx.GraphModule) -> fx.Node:
    return next(iter(reversed(module.graph.nodes)))
