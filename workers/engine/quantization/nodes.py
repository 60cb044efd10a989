"""Small questions to nodes of a graph."""

from __future__ import annotations

from typing import Any, cast

from torch import fx


def module_of(node: fx.Node) -> Any:
    """The leaf that a node calls."""
    return cast("fx.GraphModule", node.graph.owning_module).get_submodule(str(node.target))


def calls_of(node: fx.Node) -> list[fx.Node]:
    """Every node that calls the same leaf."""
    return [other for other in node.graph.nodes if other.op == "call_module" and other.target == node.target]


def layer_name(node: fx.Node) -> str:
    """The user's name of the layer, ours where it has none."""
    return str(node.meta.get("layer", node.name))
