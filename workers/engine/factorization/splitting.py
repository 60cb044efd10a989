"""The graph with a layer in parts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from workers.engine.graph import Graph, Layer

NAMES = {2: ("v", "u"), 3: ("v", "core", "u")}
"""A product with U V runs V first."""


def split(graph: Graph, layer: Layer, leaves: Sequence[nn.Module]) -> list[fx.Node]:
    """Put the parts in the layer's place, in order, under its name and `.v`, `.core`, `.u`. Returns their nodes.

    The last one stays the layer's own node, so that whatever reads it still does, in the file under the same names.
    """
    last, module = layer.node, graph.module
    target = str(last.target)
    nodes: list[fx.Node] = []
    value = last.args[0]
    for name, leaf in zip(NAMES[len(leaves)], leaves, strict=True):
        path = f"{target}_{name}"
        module.add_submodule(path, leaf.train(module.training))
        if leaf is leaves[-1]:
            last.target = path
            last.update_arg(0, value)
            node = last
            node.meta["names"] = {
                key: known
                for key, known in last.meta.get("names", {}).items()
                if key not in ("weight", "bias", "weight_ih")
            }
        else:
            with module.graph.inserting_before(last):
                node = value = module.graph.call_module(path, (value,))
        node.meta["layer"] = f"{layer.name}.{name}"
        nodes.append(node)
    module.delete_all_unused_submodules()
    module.recompile()
    return nodes
