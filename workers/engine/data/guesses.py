"""What an input may look like, as far as shapes, types and what reads it tell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the name that all of PyTorch's users know)
from torch import Tensor, fx

from modelpress.models import TensorSpec
from workers.engine.dtypes import TORCH_OF_WORD
from workers.engine.graph import Graph
from workers.engine.ops.casting import cast, cast_like
from workers.engine.ops.indexing import Embedding, gather, one_hot, slice_
from workers.engine.ops.shapes import expand, flatten, reshape, squeeze, transpose, unsqueeze

CARRYING = frozenset({cast, cast_like, slice_, expand, flatten, reshape, squeeze, transpose, unsqueeze})
"""Functions that hand on the values of their first input."""
SEGMENTS = 4
"""Tables of so few rows tell parts or kinds of an example apart: all of one example have the same."""
IMAGE_RANK, SMALLEST_IMAGE = 4, 4


@dataclass(frozen=True)
class Guess:
    values: Tensor
    told: str
    """What they are, for the report."""


def guess(graph: Graph, spec: TensorSpec, shape: tuple[int, ...], chance: torch.Generator) -> Guess:
    """One input of the graph, for as many examples as the shape says."""
    dtype = TORCH_OF_WORD[spec.dtype]
    if dtype.is_floating_point:
        if len(shape) == IMAGE_RANK and min(shape[2:]) >= SMALLEST_IMAGE:
            return Guess(smooth(shape, chance).to(dtype), f"smooth noise for {spec.name!r}")
        return Guess(torch.randn(shape, generator=chance).to(dtype), f"normal noise for {spec.name!r}")
    if dtype is torch.uint8 and len(shape) == IMAGE_RANK:
        levels = (smooth(shape, chance) * 64 + 128).round().clamp(0, 255)
        return Guess(levels.to(dtype), f"smooth noise from 0 to 255 for {spec.name!r}")
    rows = rows_read(graph, spec)
    if rows is None:
        return Guess(torch.ones(shape, dtype=dtype), f"ones, as in a mask, for {spec.name!r}")
    if rows <= SEGMENTS and len(shape) > 1:
        kinds = torch.randint(rows, (shape[0], *[1] * (len(shape) - 1)), generator=chance)
        return Guess(kinds.expand(shape).to(dtype, copy=True), f"numbers below {rows} for {spec.name!r}")
    numbers = torch.randint(rows, shape, generator=chance)
    return Guess(numbers.to(dtype), f"numbers of all {rows:,} rows of the table that {spec.name!r} is looked up in")


def rows_read(graph: Graph, spec: TensorSpec) -> int | None:
    """How many rows the table has of which an input picks some; None where it picks from none."""
    places = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    waiting = [places[graph.inputs.index(spec)]]
    for node in waiting:
        for user in node.users:
            rows = _rows(graph, node, user)
            if rows is not None:
                return rows
            if user.target in CARRYING and user.args[0] is node:
                waiting.append(user)
    return None


def _rows(graph: Graph, index: fx.Node, user: fx.Node) -> int | None:
    if user.op == "call_module":
        leaf = graph.module.get_submodule(str(user.target))
        return leaf.weight.shape[0] if isinstance(leaf, Embedding) else None
    if user.target is one_hot and user.args[0] is index and isinstance(user.args[1], int):
        return user.args[1]
    if user.target is gather and len(user.args) > 1 and user.args[1] is index:
        table, axis = user.args[0], user.kwargs.get("axis", 0)
        if isinstance(table, fx.Node) and table.op == "get_attr":
            held = getattr(graph.module, str(table.target), None)
            return held.shape[axis] if isinstance(held, Tensor) and isinstance(axis, int) else None
    return None


def smooth(shape: tuple[int, ...], chance: torch.Generator) -> Tensor:
    """Noise of all scales in even parts, (examples, channels, height, width), with mean 0 and variance 1.

    Photographs have such a spectrum (Field, 1987), and the models that see them hardly answer to white noise.
    """
    total = torch.zeros(shape)
    size = 2
    while size < max(shape[2:]):
        coarse = torch.randn(*shape[:2], *(min(size, extent) for extent in shape[2:]), generator=chance)
        total += F.interpolate(coarse, shape[2:], mode="bilinear", align_corners=False)
        size *= 2
    total += torch.randn(shape, generator=chance)
    return (total - total.mean()) / total.std()
