"""Takes the constant that is added to a matrix product into the layer, as its bias: one layer, the same outputs."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn

from workers.engine.graph import Graph
from workers.engine.ops.linear import Projection


def absorb_bias(graph: Graph) -> int:
    """Absorb in place wherever nothing else reads the product. Returns how many additions went."""
    module = graph.module
    absorbed = 0
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    for node in list(module.graph.nodes):
        if node.target is not torch.add or len(node.args) != 2 or node.kwargs:
            continue
        for product, constant in (node.args, node.args[::-1]):
            bias = _bias(module, product, constant, calls)
            if bias is not None:
                module.get_submodule(str(product.target)).bias = nn.Parameter(bias)
                _take_names(product, node, constant)
                node.replace_all_uses_with(product)
                module.graph.erase_node(node)
                absorbed += 1
                break
    if absorbed:
        module.graph.eliminate_dead_code()
        module.recompile()
    return absorbed


def _take_names(product: fx.Node, addition: fx.Node, constant: fx.Node) -> None:
    """The layer's result is called what the sum was called; the product keeps its names for the file."""
    before = product.meta
    product.meta = {
        **before,
        **{key: addition.meta[key] for key in ("value", "node") if key in addition.meta},
        "names": {**before.get("names", {}), "bias": constant.meta["name"]},
        "product": {key: before[key] for key in ("value", "node") if key in before},
    }


def _bias(module: fx.GraphModule, product: object, constant: object, calls: Counter[str]) -> Tensor | None:
    """What is added, of shape (out,), where these two are a product of a layer without bias and a constant for it."""
    if not isinstance(product, fx.Node) or not isinstance(constant, fx.Node):
        return None
    if product.op != "call_module" or len(product.users) != 1 or constant.op != "get_attr":
        return None
    layer, value = module.get_submodule(str(product.target)), getattr(module, str(constant.target), None)
    if not isinstance(layer, Projection) or layer.bias is not None or not isinstance(value, Tensor):
        return None
    if calls[str(product.target)] != 1:
        return None
    out = layer.weight.shape[0]
    fits = value.is_floating_point() and value.numel() == out and value.shape[-1:] == (out,)
    return value.detach().reshape(out).clone() if fits else None
