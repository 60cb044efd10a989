"""Takes feeds and replies off a graph at the end of a recipe: from then on it has its own, smaller form."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from modelpress.models import TensorSpec
from workers.engine.context import Batches
from workers.engine.graph import Graph
from workers.engine.interface.edges import Feed, Reply, edge_of
from workers.engine.transforms.adding import answer, results_of
from workers.engine.transforms.affine_inputs import fold_affine

METADATA = "modelpress.interface"
"""Key of the file's metadata under which it says what callers send, and what is answered."""
DROPPED = "dropped"
"""Marks an input that nothing reads any more: callers need not send it."""


@dataclass(frozen=True)
class Interface:
    """Maps inputs in the original's form to the result's own, and the result's own answers to the original's form."""

    inputs: tuple[tuple[int, tuple[Feed, ...]], ...]
    """For each own input, which of the original's it is made of, and what callers do to that."""
    outputs: tuple[tuple[tuple[int, ...], Reply | None], ...]
    """For each of the original's outputs, the own answers that stand for it, and what they stand for."""
    told: dict[str, dict[str, str]] = field(default_factory=dict)
    """What changed, in words, by `inputs` and `outputs` and by name."""

    @torch.no_grad()
    def own(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What callers send for these inputs."""
        return tuple(_through(feeds, inputs[index]) for index, feeds in self.inputs)

    @torch.no_grad()
    def seen(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """These inputs as far as the smaller form can hold them."""
        known = list(inputs)
        for index, feeds in self.inputs:
            known[index] = _back(feeds, inputs[index])
        return tuple(known)

    @torch.no_grad()
    def read(self, answers: Sequence[Tensor]) -> list[Tensor]:
        """What these own answers stand for, in the original's form."""
        return [
            answers[own[0]] if reply is None else reply(*(answers[index] for index in own))
            for own, reply in self.outputs
        ]

    @torch.no_grad()
    def asked(self, answers: Sequence[Tensor]) -> list[Tensor]:
        """The original's answers as far as the smaller form can say them."""
        return [
            answer if reply is None else reply.asked(answer)
            for answer, (_, reply) in zip(answers, self.outputs, strict=True)
        ]

    def decides(self, output: int) -> bool:
        """Whether what is answered is a choice and no number any more."""
        reply = self.outputs[output][1]
        return reply is not None and reply.decides

    def best(self, output: int) -> int | None:
        """How many of the best classes are answered; None: all."""
        reply = self.outputs[output][1]
        return None if reply is None else reply.best


@dataclass(frozen=True)
class MappedBatches:
    """Examples of which each input is mapped, as (`workers.engine.context.Batches`)."""

    source: Batches
    change: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]

    @property
    def examples(self) -> int:
        return self.source.examples

    @property
    def labelled(self) -> bool:
        return self.source.labelled

    def take(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        inputs, labels = self.source.take(indices)
        return self.change(inputs), labels


def expose(graph: Graph) -> Interface:
    """Take the edges off, in place; say in the graph's notes and metadata what callers send and are answered now."""
    told: dict[str, dict[str, str]] = {"inputs": {}, "outputs": {}}
    inputs = _without_feeds(graph, told["inputs"])
    if graph.cut is not None:
        told["outputs"][graph.outputs[0].name] = f"is what {graph.cut!r} gives inside the original"
    outputs = _without_replies(graph, told["outputs"])
    told = {side: names for side, names in told.items() if names}
    if not told:
        return Interface(inputs, outputs)
    fold_affine(graph)
    graph.module.graph.eliminate_dead_code()
    graph.module.delete_all_unused_submodules()
    graph.module.graph.lint()
    graph.module.recompile()
    graph.metadata[METADATA] = json.dumps(told, ensure_ascii=False, sort_keys=True)
    graph.notes += [f"{name}: {words}" for names in told.values() for name, words in names.items()]
    if graph.origin is not None:
        graph.origin = None
        graph.notes.append("its Hugging Face configuration does not fit any more: safetensors hold the weights alone")
    return Interface(inputs, outputs, told)


def _through(feeds: Sequence[Feed], x: Tensor) -> Tensor:
    for feed in feeds:
        x = feed(x)
    return x


def _back(feeds: Sequence[Feed], x: Tensor) -> Tensor:
    return feeds[0].back(x, _back(feeds[1:], feeds[0](x))) if feeds else x


def _without_feeds(graph: Graph, told: dict[str, str]) -> tuple[tuple[int, tuple[Feed, ...]], ...]:
    specs: list[TensorSpec] = []
    found: list[tuple[int, tuple[Feed, ...]]] = []
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    for index, (node, given) in enumerate(zip(placeholders, graph.inputs, strict=True)):
        if node.meta.get(DROPPED):
            told[given.name] = "is not sent any more: the answers do not depend on it"
            graph.module.graph.erase_node(node)
            continue
        calls = feeds_of(node)
        spec, feeds = _sent(given, node), [feed for _, feed in calls]
        for call, _ in calls:
            call.replace_all_uses_with(node)
            graph.module.graph.erase_node(call)
        if feeds:
            node.meta["word"] = spec.dtype
            told[given.name] = f"send {', then '.join(feed.told() for feed in feeds)}"
        specs.append(spec)
        found.append((index, tuple(feeds)))
    graph.inputs = tuple(specs)
    return tuple(found)


def inputs_sent(graph: Graph) -> tuple[TensorSpec, ...]:
    """What callers will send, while the feeds are still part of the graph."""
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    pairs = zip(placeholders, graph.inputs, strict=True)
    return tuple(_sent(spec, node) for node, spec in pairs if not node.meta.get(DROPPED))


def sent_for(graph: Graph, index: int) -> TensorSpec:
    """The same of one input."""
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    return _sent(graph.inputs[index], placeholders[index])


def outputs_answered(graph: Graph) -> tuple[TensorSpec, ...]:
    """What will be answered, while the replies are still part of the graph."""
    pairs = zip(results_of(graph.module), graph.outputs, strict=True)
    replies = [(edge_of(node, Reply), spec) for node, spec in pairs]
    return tuple(own for reply, spec in replies for own in ((spec,) if reply is None else reply.specs(spec)))


def _sent(spec: TensorSpec, node: fx.Node) -> TensorSpec:
    for _, feed in feeds_of(node):
        spec = feed.spec(spec)
    return spec


def feeds_of(node: fx.Node) -> list[tuple[fx.Node, Feed]]:
    """The feeds behind an input, in order, and the nodes that call them."""
    found = []
    while len(node.users) == 1:
        node = next(iter(node.users))
        feed = edge_of(node, Feed)
        if feed is None:
            break
        found.append((node, feed))
    return found


def _without_replies(graph: Graph, told: dict[str, str]) -> tuple[tuple[tuple[int, ...], Reply | None], ...]:
    results: list[fx.Node] = []
    specs: list[TensorSpec] = []
    found: list[tuple[tuple[int, ...], Reply | None]] = []
    for node, spec in zip(results_of(graph.module), graph.outputs, strict=True):
        reply = edge_of(node, Reply)
        own = (spec,) if reply is None else reply.specs(spec)
        found.append((tuple(range(len(specs), len(specs) + len(own))), reply))
        specs += own
        results += [node] if reply is None else node.all_input_nodes
        if reply is not None:
            told[spec.name] = "; ".join(filter(None, (told.get(spec.name), reply.told())))
    answer(graph.module, results)
    graph.outputs = tuple(specs)
    return tuple(found)
