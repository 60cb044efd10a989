"""Attention, in the ops that it is made of, so that every step sees its products and every runtime runs them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from workers.engine.ops.activations import softmax
from workers.engine.ops.aten import reads_aten
from workers.engine.ops.shapes import transpose

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
    if scale is None or node.get("enable_gqa"):
        raise node.unsupported("its head width is dynamic, or its queries are grouped")
    order = (*range(rank - 2), rank - 1, rank - 2)
    keys = graph.call(transpose, node.value("key"), perm=order)
    scores = graph.call(torch.matmul, node.value("query"), keys)
    scores = graph.call(torch.mul, scores, graph.keep(torch.tensor(float(scale))))
    mask = node.get("attn_mask")
    if node.get("is_causal"):
        length, other = sizes[-2], node.sizes["key"][-2]
        if not isinstance(length, int) or not isinstance(other, int):
            raise node.unsupported("it is causal over a dynamic length")
        mask = torch.ones(length, other, dtype=torch.bool).tril()
    if mask is not None:
        kept = mask.dtype if isinstance(mask, torch.Tensor) else node.dtypes["attn_mask"]
        if kept is torch.bool:
            scores = graph.call(torch.where, mask, scores, graph.keep(torch.tensor(MASKED)))
        else:
            scores = graph.call(torch.add, scores, mask)
    return graph.call(torch.matmul, graph.call(softmax, scores, axis=rank - 1), node.value("value"))
