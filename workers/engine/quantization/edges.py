"""The layers at the edges of a model, which few bits hurt most: what they lose, no other layer makes up for."""

from __future__ import annotations

from torch import fx

from workers.engine.graph import Graph


def edge_layers(graph: Graph) -> set[str]:
    """Names of the layers that inputs reach with no layer before them, and of those with no layer behind them.

    Only layers with matrices or kernels count: norms and scales are none here.
    """
    names = {
        str(layer.node.target): layer.name
        for layer in graph.layers()
        if any(weight.dim() > 1 for weight in layer.weights.values())
    }

    def is_layer(node: fx.Node) -> bool:
        return node.op == "call_module" and str(node.target) in names

    nodes = list(graph.module.graph.nodes)
    fed, behind, ahead = set[fx.Node](), set[fx.Node](), set[fx.Node]()
    for node in nodes:
        if node.op == "placeholder" or any(source in fed for source in node.all_input_nodes):
            fed.add(node)
        if any(source in behind or is_layer(source) for source in node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if any(user in ahead or is_layer(user) for user in node.users):
            ahead.add(node)
    return {
        names[str(node.target)]
        for node in nodes
        if is_layer(node) and ((node in fed and node not in behind) or node not in ahead)
    }
