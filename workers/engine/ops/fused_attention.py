"""Attention where ONNX has one op for it: queries, keys and values, rotary positions, and caches of keys and values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx

from workers.engine.dtypes import TORCH_OF_ONNX
from workers.engine.ops.base import Op, register, source_of
from workers.engine.ops.plain import Plain, plain
from workers.engine.structure.labels import COPIES, HEADS, WIDTH

if TYPE_CHECKING:
    from workers.engine.structure.axes import Axes
    from workers.engine.structure.labels import Dim


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    filled: Tensor | None = None,
    *,
    is_causal: int = 0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vaswani et al., arXiv:1706.03762; queries may share keys in groups (arXiv:2305.13245).

    Inputs are (batch, heads, length, width), or (batch, length, heads × width) with the numbers of heads as attributes.
    `filled` (batch,): how much of the keys counts. Gives the result, all keys and values, and the scores at the point
    that `qk_matmul_output_mode` names.
    """
    flat = query.dim() == 3
    if flat:
        query = _heads(query, q_num_heads)
        key, value = (_heads(x, kv_num_heads) for x in (key, value))
    offset: int | Tensor = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    elif filled is not None:
        offset = (filled - query.shape[2]).reshape(-1, 1, 1, 1)
    bias = _bias(query, key, mask, filled)
    windows = (left_window_size, 0 if is_causal else right_window_size)
    if is_causal or max(windows) >= 0:
        bias = _within(bias, offset, *windows)
    group = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(group, 1) if group > 1 else x for x in (key, value))
    factor = math.sqrt(1 / math.sqrt(query.shape[3]) if scale is None else scale)
    scores = (query * factor) @ (keys * factor).transpose(2, 3)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    biased = scores + bias
    wide = biased if softmax_precision is None else biased.to(TORCH_OF_ONNX[softmax_precision])
    unseen = bias.amax(-1, keepdim=True) == -math.inf  # a query that may look nowhere gets nothing, and gradients of 0
    shares = torch.softmax(wide.masked_fill(unseen, 0), -1).masked_fill(unseen, 0).to(query.dtype)
    result = shares @ values
    if flat:
        result = result.transpose(1, 2).flatten(2)
    return result, key, value, {2: biased, 3: shares}.get(qk_matmul_output_mode, scores)


def _heads(x: Tensor, count: int | None) -> Tensor:
    """(batch, length, heads × width) as (batch, heads, length, width)."""
    if not count:
        raise ValueError("inputs of three dimensions need the number of heads")
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def _bias(query: Tensor, key: Tensor, mask: Tensor | None, filled: Tensor | None) -> Tensor:
    """What is added to the scores: -inf where a query may not look."""
    bias = query.new_zeros(query.shape[2], key.shape[2])
    if mask is not None:
        added = torch.where(mask, 0.0, -math.inf).to(query.dtype) if mask.dtype is torch.bool else mask
        short = key.shape[2] - added.shape[-1]
        bias = bias + torch.nn.functional.pad(added, (0, short), value=-math.inf)
    if filled is not None:
        empty = torch.arange(key.shape[2], device=query.device) >= filled.reshape(-1, 1, 1, 1)
        bias = bias.masked_fill(empty, -math.inf)
    return bias


def _within(bias: Tensor, offset: int | Tensor, left: int, right: int) -> Tensor:
    """Query i stands at place i + offset and sees as many places to its left and right; -1: all."""
    place = torch.arange(bias.shape[-2], device=bias.device).unsqueeze(1) + offset
    other = torch.arange(bias.shape[-1], device=bias.device)
    outside = (other - place > right) if right >= 0 else torch.zeros_like(other - place, dtype=torch.bool)
    if left >= 0:
        outside = outside | (place - other > left)
    return bias.masked_fill(outside, -math.inf)


def rotary_embedding(
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Pairs of elements turned by the angle of their position (Su et al., arXiv:2104.09864).

    `x` as for attention; tables (positions, pairs) with `positions` (batch, length), else (batch, length, pairs).
    """
    heads = x.unflatten(2, (num_heads, -1)) if x.dim() == 3 else x.transpose(1, 2)
    width = rotary_embedding_dim or heads.shape[3]
    turned, rest = heads[..., :width], heads[..., width:]
    cosine, sine = ((t if positions is None else t[positions]).unsqueeze(2) for t in (cosines, sines))
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = cosine * first - sine * second, sine * first + cosine * second
    turned = torch.stack(pair, -1).flatten(3) if interleaved else torch.cat(pair, -1)
    result = torch.cat([turned, rest], -1)
    return result.flatten(2) if x.dim() == 3 else result.transpose(1, 2)


def tensor_scatter(
    cache: Tensor, update: Tensor, starts: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """A cache with new entries along the axis, from each example's start on; `circular` ones wrap around."""
    dim = axis % cache.dim()
    places = torch.arange(update.shape[dim], device=cache.device)
    if starts is not None:
        places = places + starts.unsqueeze(1)
    if mode == "circular":
        places = places % cache.shape[dim]
    shape = [1] * update.dim()
    shape[0], shape[dim] = 1 if starts is None else -1, update.shape[dim]
    return cache.scatter(dim, places.reshape(shape).expand(update.shape), update)


@register
class Attention(Plain):
    name = "Attention"
    functions = (attention,)
    results = 4
    required = 1
    attribute_since: ClassVar[dict[str, int]] = {"left_window_size": 25, "right_window_size": 25}
    opset = 23

    def axes(self, node: fx.Node, axes: Axes) -> None:
        """Heads are removed, with all that share their keys where there are several such groups."""
        if any(cache is not None for cache in node.args[4:]):
            axes.freeze(node, "attention has a cache of keys and values")
            return
        flat = len(axes.shape(node.args[0])) == 3  # type: ignore[arg-type]
        query, key, value = (axes.of(source_of(node, place)) for place in range(3))
        if flat:
            query = split_heads(node, axes, query, "q_num_heads")
            key, value = (split_heads(node, axes, dims, "kv_num_heads") for dims in (key, value))
        sharing = axes.fresh(query[1].size // key[1].size)
        axes.prefer(sharing, COPIES)
        axes.prefer(query[1], HEADS)
        axes.same(query[1], axes.merged([key[1], sharing]))
        for one, other in ((key[1], value[1]), (query[3], key[3])):
            axes.same(one, other)
        for width in (query[3], value[3]):
            axes.prefer(width, WIDTH)
        if node.kwargs.get("scale") is None:
            axes.keep(query[3], "the scale of attention comes from the width of its heads")
        scores = [query[0], query[1], query[2], key[2]]
        if len(node.args) > 3 and isinstance(node.args[3], fx.Node):
            axes.broadcast([scores, axes.of(node.args[3])], axes.shape(node)[3])
        mixed = [*query[:3], value[3]]
        result = [query[0], query[2], axes.merged([query[1], value[3]])] if flat else mixed
        axes.give_parts(node, [result, key, value, scores])

    def macs(self, node: fx.Node) -> int:
        _, keys, values, scores = node.meta["shape"]
        return math.prod(scores) * (keys[-1] + values[-1])


def split_heads(node: fx.Node, axes: Axes, dims: list[Dim], attribute: str) -> list[Dim]:
    """(batch, length, heads × width) as (batch, heads, length, width); the attribute counts the heads."""
    count: Any = node.kwargs[attribute]
    heads, width = axes.factors(dims[2], [count, -1])
    axes.counted_by(node, attribute, heads)
    return [dims[0], heads, dims[1], width]


def rotary_axes(_: Op, node: fx.Node, axes: Axes) -> None:
    """Places of a head belong together in pairs, and to tables."""
    dims = axes.of(source_of(node))
    width = dims[-1] if len(dims) == 4 else split_heads(node, axes, dims, "num_heads")[3]
    axes.keep(width, "RotaryEmbedding turns it in pairs")
    for table in node.all_input_nodes[1:]:
        for dim in axes.of(table):
            axes.keep(dim, "it is a table of RotaryEmbedding")
    axes.give(node, dims)


plain("RotaryEmbedding", rotary_embedding, axes=rotary_axes, opset=23)
plain("TensorScatter", tensor_scatter, words=frozenset({"circular"}), opset=24)
