"""Puts feeds and replies at the edges of a graph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from workers.engine.graph import Graph
from workers.engine.interface.edges import Feed, Reply
from workers.engine.interface.exposing import feeds_of
from workers.engine.transforms.adding import add_leaf, answer, results_of


def attach_feed(graph: Graph, index: int, feed: Feed) -> fx.Node:
    """Let callers do this to an input, after what they do to it already; everything inside reads what comes of it."""
    module = graph.module
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    node = inputs[index]
    last = next((call for call, _ in reversed(feeds_of(node))), node)
    path = add_leaf(module, "feed", feed)
    with module.graph.inserting_after(inputs[-1] if last is node else last):
        call = module.graph.call_module(path, (last,))
    last.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    module.recompile()
    return call


def attach_reply(graph: Graph, index: int, reply: Reply, answers: Sequence[fx.Node]) -> None:
    """Answer these values in the place of an output; the reply says what they stand for."""
    module = graph.module
    results = results_of(module)
    path = add_leaf(module, "reply", reply)
    with module.graph.inserting_before(next(iter(reversed(module.graph.nodes)))):
        results[index] = module.graph.call_module(path, tuple(answers))
    answer(module, results)
    module.recompile()
