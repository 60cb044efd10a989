"""Makes the result of one layer the only answer of a graph: a feature extractor."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

from torch import Tensor, fx

from modelpress.models import Dim, TensorSpec
from workers.engine.context import Batches, Context, Graphlike
from workers.engine.dtypes import WORD_OF_TORCH
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.interface.exposing import DROPPED
from workers.engine.shapes import batch_symbols, propagate
from workers.engine.structure.sizes import Sizes
from workers.engine.transforms.adding import answer

NAMED = 40
"""Layers that a refusal names."""


def cut_at(graph: Graph, name: str) -> None:
    """In place. Inputs that only what is gone has read are marked. Raises StepError where there is no such layer."""
    module = graph.module
    node = _node(graph, name)
    if not _depends_on_inputs(node):
        raise StepError(f"{name!r} gives the same whatever the inputs are: cut at another layer")
    read = [given for given in module.graph.nodes if given.op == "placeholder" and given.users]
    propagate(graph)
    spec = _spec(graph, node, name)
    if spec.dtype not in ("float32", "float64", "float16", "bfloat16"):
        raise StepError(f"{name!r} gives whole numbers ({spec.dtype}), which are no features: cut at another layer")
    answer(module, [node])
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    for given in read:
        if not given.users:
            given.meta[DROPPED] = True
    module.recompile()
    graph.outputs, graph.cut = (spec,), name


def after_cut(context: Context, graph: Graph) -> Context:
    """By what later steps are taught, and what they compare with: the same result of the original.

    An uploaded teacher stays where it has a layer of this name that is as wide.
    """
    original = copy_cut_like(context.original, graph)
    teacher = original if context.teacher is context.original else copy_cut_like(context.teacher, graph)
    if isinstance(teacher, Graph) and (
        teacher.cut != graph.cut or teacher.outputs[0].shape[1:] != graph.outputs[0].shape[1:]
    ):
        teacher = original
    train, calibrate = (
        Unlabelled(data) if data is not None and data.labelled else data for data in (context.train, context.calibrate)
    )
    return replace(
        context, train=train, calibrate=calibrate, original=original, teacher=teacher,
        output=0, class_axis=None, task="none",
    )  # fmt: skip


@dataclass(frozen=True)
class Unlabelled:
    """Examples whose labels say nothing of what is answered."""

    source: Batches
    labelled = False

    @property
    def examples(self) -> int:
        return self.source.examples

    def take(self, indices: Tensor) -> tuple[tuple[Tensor, ...], None]:
        return self.source.take(indices)[0], None


def copy_cut_like(graph: Graphlike, other: Graph) -> Graphlike:
    """A copy that is cut where the other is; the graph itself where that cannot be."""
    if not isinstance(graph, Graph) or other.cut is None:
        return graph
    copied = graph.copy()
    try:
        cut_at(copied, other.cut)
    except StepError:
        return graph
    return copied


def _node(graph: Graph, name: str) -> fx.Node:
    """By the name of a layer, else of a value or a node of the user's file; its first result, if it has several."""
    for key in ("layer", "value", "node"):
        found = [node for node in graph.module.graph.nodes if node.meta.get(key) == name and node.op != "placeholder"]
        if found:
            node = found[-1]
            parts = [user for user in node.users if user.target is operator.getitem]
            return min(parts, key=_place) if parts else node
    layers = [layer.name for layer in graph.layers()]
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    raise StepError(f"cut: there is no layer {name!r}; the model has {', '.join(layers[:NAMED])}{more}")


def _place(part: fx.Node) -> int:
    place = part.args[1]
    return place if isinstance(place, int) else 0


def _depends_on_inputs(node: fx.Node) -> bool:
    waiting, seen = [node], {node}
    for source in waiting:
        if source.op == "placeholder":
            return True
        new = [other for other in source.all_input_nodes if other not in seen]
        seen.update(new)
        waiting += new
    return False


def _spec(graph: Graph, node: fx.Node, name: str) -> TensorSpec:
    """Open dimensions have names: that of the batch, or the layer's with a number."""
    shape = node.meta["shape"]
    if shape and isinstance(shape[0], tuple):
        raise StepError(f"cut: {name!r} gives several results, none of which is the first; cut at another layer")
    sizes = Sizes(graph)
    batch = min(batch_symbols(graph), default="batch")
    dims: list[Dim] = [
        (batch if axis == 0 else f"{name}_{axis}") if sizes.is_open(node, axis) else size
        for axis, size in enumerate(sizes.shape(node))
    ]
    output = f"{name}_output" if any(spec.name == name for spec in graph.inputs) else name
    return TensorSpec(name=output, dtype=WORD_OF_TORCH[node.meta["dtype"]], shape=tuple(dims))
