"""Attention, in the ops that it is made of, so that every step sees its products and every runtime runs them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from workers.engine.ops.activations import softmax
from workers.engine.ops.aten import reads_aten
from workers.engine.ops.constants import number_range
from workers.engine.ops.shapes import expand, reshape, shape, squeeze, transpose, unsqueeze

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode

MASKED = -1e9
"""Added to scores that may not be looked at; small enough that their weight is zero in float32, and finite."""


@reads_aten("scaled_dot_product_attention.default")
def read_aten_attention(node: AtenNode, graph: GraphBuilder) -> Value:
    """Queries (…, length, width) look at keys and values (…, other length, width), Vaswani et al., arXiv:1706.03762."""
    if node.get("dropout_p", 0):
        raise node.unsupported("the model was exported in training mode; call model.eval() before torch.export.export")
    rank, sizes = node.rank("query"), node.sizes["query"]
    width = sizes[-1]
    scale = node.get("scale") or (1 / math.sqrt(width) if isinstance(width, int) else None)
    if scale is None:
        raise node.unsupported("its head width is dynamic")
    order = (*range(rank - 2), rank - 1, rank - 2)
    keys = graph.call(transpose, _for_each_query(node, graph, "key"), perm=order)
    scores = graph.call(torch.matmul, node.value("query"), keys)
    scores = graph.call(torch.mul, scores, graph.keep(torch.tensor(float(scale))))
    mask = node.get("attn_mask")
    if node.get("is_causal"):
        mask = _causal(node, graph)
    if mask is not None:
        if node.get("is_causal") or node.dtypes["attn_mask"] is torch.bool:
            scores = graph.call(torch.where, mask, scores, graph.keep(torch.tensor(MASKED)))
        else:
            scores = graph.call(torch.add, scores, mask)
    values = _for_each_query(node, graph, "value")
    return graph.call(torch.matmul, graph.call(softmax, scores, axis=rank - 1), values)


def _causal(node: AtenNode, graph: GraphBuilder) -> Value:
    """True where a query (length, 1) may look at a key (1, other length): at those that are not later than itself."""
    length, other = node.sizes["query"][-2], node.sizes["key"][-2]
    if isinstance(length, int) and isinstance(other, int):
        return graph.keep(torch.ones(length, other, dtype=torch.bool).tril())
    rows, columns = (_positions(node, graph, side) for side in ("query", "key"))
    return graph.call(torch.ge, graph.call(unsqueeze, rows, (1,)), columns)


def _positions(node: AtenNode, graph: GraphBuilder, side: str) -> Value:
    axis = node.rank(side) - 2
    length = graph.call(squeeze, graph.call(shape, node.value(side), start=axis, end=axis + 1), (0,))
    return graph.call(number_range, graph.keep(torch.tensor(0)), length, graph.keep(torch.tensor(1)))


def _for_each_query(node: AtenNode, graph: GraphBuilder, side: str) -> Value:
    """Keys or values (…, heads, length, width), each head as often as there are query heads that share it."""
    value = node.value(side)
    if not node.get("enable_gqa"):
        return value
    axis = node.rank(side) - 3
    queries, heads, width = node.sizes["query"][axis], node.sizes[side][axis], node.sizes[side][-1]
    if not (isinstance(queries, int) and isinstance(heads, int) and isinstance(width, int)):
        raise node.unsupported("its number of heads is dynamic")
    if queries == heads:
        return value
    repeats = (*(1,) * (axis + 1), queries // heads, 1, 1)
    shared = graph.call(expand, graph.call(unsqueeze, value, (axis + 1,)), repeats)
    return graph.call(reshape, shared, (*(0,) * axis, queries, -1, width), allowzero=0)
