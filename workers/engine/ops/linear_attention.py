"""Layers with a state that the next call goes on from: attention without a softmax, and the convolution before it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx

from workers.engine.ops.base import register, source_of
from workers.engine.ops.plain import Plain


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """Channel by channel over what came before: (N, channels, length), and the inputs that the next call needs."""
    reach = weight.shape[2] - 1
    before = x.new_zeros(*x.shape[:2], reach) if past is None else past
    whole = torch.cat([before, x], 2)
    result = F.conv1d(whole, weight, bias, groups=x.shape[1])
    return F.silu(result) if activation in ("silu", "swish") else result, whole[:, :, whole.shape[2] - reach :]


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """A state (N, heads, key width, value width) that keys write and queries read (Yang et al., arXiv:2412.06464).

    Inputs are (N, length, heads × width). `decay` (logarithms of what is kept) belongs to the gated rules, `beta` (how
    much of the difference to what is stored is written) to the delta rules.
    """
    gated, delta = "gated" in update_rule, "delta" in update_rule
    if gated != (decay is not None) or delta != (beta is not None):
        raise ValueError(f"decay and beta do not fit the rule {update_rule}")
    queries = _heads(query, q_num_heads)
    keys, values = (_heads(x, kv_num_heads) for x in (key, value))
    factor = scale or 1 / math.sqrt(queries.shape[3])
    state = (past if past is not None else query.new_zeros(*keys.shape[:2], keys.shape[3], values.shape[3])).float()
    group = q_num_heads // kv_num_heads
    results = []
    for step in range(query.shape[1]):
        one, written = keys[:, :, step], values[:, :, step]
        if decay is not None:
            state = state * decay[:, step].float().unflatten(1, (kv_num_heads, -1)).exp().unsqueeze(3)
        if beta is not None:
            stored = (state * one.unsqueeze(3)).sum(2)
            written = beta[:, step].float().unsqueeze(2) * (written - stored)
        state = state + one.unsqueeze(3) * written.unsqueeze(2)
        read = state.repeat_interleave(group, 1) if group > 1 else state
        results.append(factor * (queries[:, :, step].unsqueeze(3) * read).sum(2))
    kept = past.dtype if past is not None else query.dtype
    return torch.stack(results, 1).flatten(2).to(query.dtype), state.to(kept)


def _heads(x: Tensor, count: int) -> Tensor:
    """(N, heads, length, width), float32."""
    return x.float().unflatten(2, (count, -1)).transpose(1, 2)


@register
class CausalConvWithState(Plain):
    name = "CausalConvWithState"
    functions = (causal_conv,)
    results = 2
    words = frozenset({"silu", "swish"})
    opset = 27

    def macs(self, node: fx.Node) -> int:
        return math.prod(node.meta["shape"][0]) * int(source_of(node, 1).meta["shape"][2])


@register
class LinearAttention(Plain):
    name = "LinearAttention"
    functions = (linear_attention,)
    results = 2
    words = frozenset({"gated", "delta", "gated_delta"})
    ignored = frozenset({"chunk_size"})
    opset = 27

    def macs(self, node: fx.Node) -> int:
        """The state is written and read at every step."""
        result, state = node.meta["shape"]
        return 2 * math.prod(state) * int(result[1])
