"""Match the inner results of a student to those of its teacher, by name or by depth.

Romero et al., 2015 (FitNets), arXiv:1412.6550.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.ops.normalization import LayerNorm, RMSNorm
from workers.engine.watching import values_of


class Inner(Protocol):
    """What of the inner values of both is compared, and how."""

    mine: tuple[fx.Node, ...]
    """Of the student."""
    theirs: tuple[fx.Node, ...]
    """Of the teacher, one for each of the student's."""

    def loss(self, mine: Sequence[Tensor], theirs: Sequence[Tensor], examples: int) -> Tensor:
        """Of the values of these nodes for a batch of so many examples."""

    def parameters(self) -> list[nn.Parameter]:
        """What is trained too and thrown away at the end."""

    def told(self) -> str: ...


class FeatureMatching:
    """Where student and teacher differ in one dim, a linear projection of the student along it is trained too.

    Layers that differ in more are left out. Raises StepError where no layer is left.
    """

    def __init__(self, student: Graph, teacher: Graph, inputs: tuple[Tensor, ...]) -> None:
        """`inputs`: a few examples, on the graphs' device, from which the shapes are learnt."""
        own, others = _results(student, inputs), _results(teacher, inputs)
        self._by_name = {name for name, _, _ in own} & {name for name, _, _ in others}
        pairs = list(_by_name(own, others)) if self._by_name else list(_by_depth(own, others))
        device = inputs[0].device
        self._projections = nn.ModuleDict()
        self._axes: list[int | None] = []
        mine: list[fx.Node] = []
        theirs: list[fx.Node] = []
        for (one, shape), (other, wanted) in pairs:
            axes = _unlike(shape, wanted)
            if axes is None or len(axes) > 1:
                continue
            if axes:
                projection = nn.Linear(shape[axes[0]], wanted[axes[0]], device=device)
                self._projections[f"of_{len(self._axes)}"] = projection
            self._axes.append(axes[0] if axes else None)
            mine.append(one)
            theirs.append(other)
        if not mine:
            raise StepError(
                "features: no layer of the model has the shape, but for one dimension, of one of the teacher's: "
                "leave features out"
            )
        self.mine, self.theirs = tuple(mine), tuple(theirs)

    def loss(self, mine: Sequence[Tensor], theirs: Sequence[Tensor], examples: int) -> Tensor:  # noqa: ARG002 (Inner's)
        """Mean over the layers of the squared error, each in units of the teacher's variance."""
        losses = []
        for place, (axis, one, other) in enumerate(zip(self._axes, mine, theirs, strict=True)):
            given = one
            if axis is not None:
                given = self._projections[f"of_{place}"](one.movedim(axis, -1)).movedim(-1, axis)
            losses.append((given - other).square().mean() / other.var().clamp_min(1e-12))
        return torch.stack(losses).mean()

    def parameters(self) -> list[nn.Parameter]:
        return list(self._projections.parameters())

    def told(self) -> str:
        how = "by name" if self._by_name else "by depth, as no two have the same name"
        through = f", {len(self._projections)} of them through projections" if self._projections else ""
        return f"the inner results of {len(self.mine)} layers were matched too, {how}{through}"


Result = tuple[str, Layer, tuple[fx.Node, torch.Size]]


def _results(graph: Graph, inputs: tuple[Tensor, ...]) -> list[Result]:
    """Name, layer, node and shape of what each layer gives; of recurrent layers the sequence."""
    nodes = {layer.name: (layer, _first(layer.node)) for layer in graph.layers()}
    values = values_of(graph.module, [node for _, node in nodes.values()], inputs)
    return [
        (name, layer, (node, values[node].shape))
        for name, (layer, node) in nodes.items()
        if node in values and values[node].is_floating_point()
    ]


def _first(node: fx.Node) -> fx.Node:
    """The first result where there are several."""
    parts = [user for user in node.users if user.target is operator.getitem]
    return next((part for part in parts if part.args[1] == 0), node)


def _by_name(own: list[Result], others: list[Result]) -> Iterator[tuple[tuple[fx.Node, torch.Size], ...]]:
    found = {name: result for name, _, result in others}
    return ((result, found[name]) for name, _, result in own if name in found)


def _by_depth(own: list[Result], others: list[Result]) -> Iterator[tuple[tuple[fx.Node, torch.Size], ...]]:
    """Layers of one kind and resolution, in even steps over those of the other; in transformers, normalizations."""
    norms = _normalizations(own) and _normalizations(others)
    mine, theirs = (_kinds(_normalizations(results) if norms else results) for results in (own, others))
    for kind, results in mine.items():
        wanted = theirs.get(kind, [])
        for place, result in enumerate(results):
            if wanted:
                yield result, wanted[paired(place, len(results), len(wanted))]


def paired(place: int, count: int, others: int) -> int:
    """The place among the others at the same depth; the last belongs to the last."""
    return max(round((place + 1) * others / count), 1) - 1


def _normalizations(results: list[Result]) -> list[Result]:
    return [result for result in results if isinstance(result[1].module, LayerNorm | RMSNorm)]


def _kinds(results: list[Result]) -> dict[tuple[object, ...], list[tuple[fx.Node, torch.Size]]]:
    """By op and by all sizes but that of the channels."""
    kinds = defaultdict(list)
    for _, layer, (node, shape) in results:
        rest = shape[2:] if layer.op.name.startswith("Conv") else shape[1:-1]
        kinds[layer.op.name, *rest].append((node, shape))
    return kinds


def _unlike(shape: torch.Size, wanted: torch.Size) -> list[int] | None:
    """The dims, after that of the examples, in which two shapes differ; None where they cannot be compared."""
    if len(shape) != len(wanted) or shape[:1] != wanted[:1]:
        return None
    return [axis for axis in range(1, len(shape)) if shape[axis] != wanted[axis]]
