"""Finds attention in its parts, in which it stays: runtimes fuse these, pruning and rounding treat each alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from workers.engine.ops.activations import softmax
from workers.engine.ops.base import source_of
from workers.engine.ops.softmax import coerced_softmax
from workers.engine.transforms.patterns import Anything, Call, Match, Number, Pattern, Value

queries, keys, values, mask = Value("queries"), Value("keys"), Value("values"), Anything("mask")
products = Call(torch.matmul, queries, keys)
scaled = products | products * Number("scale") | products / Number("scale")
masked = scaled | scaled + mask | Call(torch.where, mask, scaled, Anything("fill"))
masked = masked | Call(torch.where, mask, Anything("fill"), scaled)


def rows_of(scores: Pattern) -> Pattern:
    """Softmax; torch turns rows of which everything is masked to zero."""
    shares = Call(softmax, scores) | Call(coerced_softmax, scores, kind="Softmax")
    return shares | Call(torch.where, Call(torch.isnan, shares), 0.0, shares)


ATTENTION = Call(torch.matmul, rows_of(masked), values)


@dataclass(frozen=True)
class Attention:
    """One attention (arXiv:1706.03762)."""

    queries: fx.Node
    keys: fx.Node
    values: fx.Node
    scores: frozenset[fx.Node]
    """The product of queries and keys, and all between it and the softmax: a mask puts huge numbers there."""
    weights: fx.Node
    output: fx.Node


def find_attention(nodes: fx.Graph) -> list[Attention]:
    """In the order of execution."""
    matches = ((node, next(ATTENTION.match(node, Match()), None)) for node in nodes.nodes)
    return [_attention(node, match) for node, match in matches if match is not None]


def _attention(output: fx.Node, match: Match) -> Attention:
    shares = next(node for node in match.nodes if node.target in (softmax, coerced_softmax))
    return Attention(
        queries=match["queries"],
        keys=match["keys"],
        values=match["values"],
        scores=frozenset(node for node in match.nodes if node < shares),
        weights=source_of(output),
        output=output,
    )
