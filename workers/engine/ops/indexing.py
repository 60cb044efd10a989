"""Ops that pick values by index, and tables of embeddings as leaves with a weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx, nn

from workers.engine.ops.aten import reads_aten
from workers.engine.ops.base import Op, Quantization, register, source_of
from workers.engine.ops.layout_rules import sliced
from workers.engine.ops.plain import Plain, as_literal, plain
from workers.engine.ops.reductions import as_ints
from workers.engine.ops.shapes import concat, unsqueeze

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes, Role
    from workers.engine.writers.onnx import OnnxBuilder

Ints = Sequence[int] | Tensor


def _counted(indices: Tensor, length: int) -> Tensor:
    """Negative indices count from the end."""
    return torch.where(indices < 0, indices + length, indices).to(torch.int64)


class Embedding(nn.Module):
    """Weight (rows, …): rows by index."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, indices: Tensor) -> Tensor:
        weight = self.weight
        counted = _counted(indices, weight.shape[0])
        if weight.dim() == 2:
            return F.embedding(counted, weight)
        return weight.index_select(0, counted.flatten()).reshape(*counted.shape, *weight.shape[1:])


def gather(x: Tensor, indices: Tensor | int | Sequence[int], *, axis: int = 0) -> Tensor:
    axis = axis % x.dim()
    if isinstance(indices, int):
        return x.select(axis, indices)
    if not isinstance(indices, Tensor):
        indices = torch.tensor(indices, dtype=torch.int64, device=x.device)
    places = _counted(indices, x.shape[axis])
    picked = x.index_select(axis, places.flatten())
    return picked.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _counted(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The last dimension of `indices` are places in the dimensions of `x` after the batch ones."""
    batch = x.shape[:batch_dims]
    depth = indices.shape[-1]
    places = indices.to(torch.int64).reshape(*([-1] if batch_dims else [1]), *indices.shape[batch_dims:])
    rows = x.reshape(places.shape[0], *x.shape[batch_dims:])
    lead = torch.arange(rows.shape[0], device=x.device).reshape(-1, *[1] * (places.dim() - 2))
    picked = rows[(lead, *places.unbind(-1))]
    return picked.reshape(*batch, *indices.shape[batch_dims:-1], *x.shape[batch_dims + depth :])


def _places(begin: int, stop: int, stride: int, length: int) -> range:
    """Of a backward slice: unlike Python's, one that starts before the first element starts at it."""
    begin, stop = (bound + length if bound < 0 else bound for bound in (begin, stop))
    return range(min(max(begin, 0), length - 1), min(max(stop, -1), length - 1), stride)


def slice_(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    begins, stops = as_ints(starts), as_ints(ends)
    dims = list(range(len(begins))) if axes is None else as_ints(axes)
    strides = [1] * len(begins) if steps is None else as_ints(steps)
    for begin, stop, dim, stride in zip(begins, stops, dims, strides, strict=True):
        if stride > 0:  # as Python's, and followed by a trace with sizes that it keeps symbolic
            x = x[(slice(None),) * (dim % x.dim()) + (slice(begin, stop, stride),)]
        else:
            places = _places(begin, stop, stride, x.shape[dim])
            x = x.index_select(dim, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    places = _counted(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    kind = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return x.scatter_reduce(axis, places, updates, kind, include_self=True)


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = indices.shape[-1]
    places = [_counted(part, x.shape[axis]) for axis, part in enumerate(indices.unbind(-1))]
    flat = torch.zeros_like(places[0])
    for axis, place in enumerate(places):
        flat = flat * x.shape[axis] + place
    rows = x.reshape(-1, *x.shape[depth:]) if depth < x.dim() else x.reshape(-1)
    values = updates.reshape(-1, *x.shape[depth:]) if depth < x.dim() else updates.reshape(-1)
    flat = flat.reshape(-1)
    if reduction == "none":
        return rows.index_copy(0, flat, values).reshape(x.shape)
    if reduction == "add":
        return rows.index_add(0, flat, values).reshape(x.shape)
    kind = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return rows.index_reduce(0, flat, values, kind, include_self=True).reshape(x.shape)


def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first elements of each example, as many as its length, in reverse."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    rest = lengths.unsqueeze(1)
    places = torch.where(steps < rest, rest - 1 - steps, steps)
    shape = [1] * x.dim()
    shape[batch_axis], shape[time_axis] = x.shape[batch_axis], x.shape[time_axis]
    places = places if batch_axis < time_axis else places.t()
    return x.gather(time_axis, places.reshape(shape).expand(x.shape))


def one_hot(indices: Tensor, depth: Tensor | Sequence[int] | int, values: Tensor, *, axis: int = -1) -> Tensor:
    count = int(torch.as_tensor(depth).reshape(()).item())
    classes = torch.arange(count, device=indices.device)
    places = indices.to(torch.int64) % count
    outside = (indices < -count) | (indices >= count)
    hit = (places.unsqueeze(-1) == classes) & ~outside.unsqueeze(-1)
    return torch.where(hit, values[1], values[0]).movedim(-1, axis)


def non_zero(x: Tensor) -> Tensor:
    return torch.stack(x.nonzero(as_tuple=True)) if x.dim() else x.reshape(1).nonzero().t()


def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    if axis is None:
        x, axis = x.flatten(), 0
    return x.index_select(axis, condition.nonzero().flatten())


@register
class Gather(Plain):
    name = "Gather"
    modules = (Embedding,)
    functions = (gather,)
    weights: ClassVar[dict[str, int]] = {"weight": 0}
    quantization = Quantization(inputs=(), weights={"weight": 0}, output=False)

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        table, indices, axis = node.input(0), node.input(1), node.attribute("axis", 0)
        if isinstance(table, Tensor) and isinstance(indices, fx.Node) and _is_table(table, axis):
            return graph.module(node.layer(0), Embedding(graph.parameter(node.weight(0))), indices)
        return graph.call(gather, table, indices if isinstance(table, Tensor) else as_literal(indices), axis=axis)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        if node.op == "call_module":
            onnx.emit(node, "Gather", [onnx.weight(node, "weight"), node.args[0]], axis=0)
        else:
            super().write(node, onnx)

    def axes(self, node: fx.Node, axes: Axes) -> None:
        """What is picked from stays, since indices count it. Tables of embeddings make what their rows have."""
        if node.op == "call_module":
            places = axes.of(source_of(node))
            rank = len(axes.shape(node)) - len(places)
            roles: list[Role | None] = ["makes"] * rank
            rows, *columns = axes.weight(node, "weight", ["takes", *roles])
            axes.keep(rows, f"the rows of {axes.name(node)} are picked by index")
            axes.give(node, [*places, *columns])
            return
        dims = axes.of(source_of(node))
        axis = int(node.kwargs["axis"]) % len(dims)  # type: ignore[arg-type]
        axes.keep(dims[axis], "single elements are picked from it by index")
        if isinstance(node.args[1], fx.Node):
            places = axes.of(node.args[1])
        else:
            count = len(axes.shape(node)) - len(dims) + 1
            places = [axes.stays(len(node.args[1]), "it is a list of indices")] if count else []  # type: ignore[arg-type]
        axes.give(node, [*dims[:axis], *places, *dims[axis + 1 :]])


def _is_table(tensor: Tensor, axis: int) -> bool:
    return axis in (0, -tensor.dim()) and tensor.dim() >= 2 and tensor.is_floating_point()


plain("GatherElements", gather_elements)
plain("GatherND", gather_nd)
plain(
    "Slice",
    slice_,
    axes=sliced,
    literals=frozenset({1, 2, 3, 4}),
    attribute_before={1: ("starts", 10), 2: ("ends", 10), 3: ("axes", 10)},
    quantization=Quantization(inputs=(0,), passes=True),
)
plain("ScatterElements", scatter_elements, attribute_since={"reduction": 16})
plain("ReverseSequence", reverse_sequence)
plain("ScatterND", scatter_nd, attribute_since={"reduction": 16})
plain("OneHot", one_hot, folds=0)
plain("NonZero", non_zero)
plain("Compress", compress)


@register
class Scatter(Op):
    """The older name of ScatterElements; it is written as that."""

    name = "Scatter"

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        inputs = (node.input(position) for position in range(3))
        return graph.call(scatter_elements, *inputs, axis=node.attribute("axis", 0), reduction="none")


LAST = (1 << 63) - 1
"""PyTorch's and ONNX's word for the end of a slice."""


@reads_aten("embedding.default")
def read_aten_embedding(node: AtenNode, graph: GraphBuilder) -> Value:
    table = Embedding(graph.parameter(node.weight("weight")))
    return graph.module(node.layer("weight"), table, node.value("indices"))


@reads_aten("select.int")
def read_aten_select(node: AtenNode, graph: GraphBuilder) -> Value:
    index = node.plain(node.get("index"))
    return graph.call(gather, node.value("self"), index, axis=node.axis("dim", "self"))


@reads_aten("slice.Tensor")
def read_aten_slice(node: AtenNode, graph: GraphBuilder) -> Value:
    start, end, step = node.get("start"), node.get("end"), int(node.get("step", 1))
    start, end = 0 if start is None else start, LAST if end is None else end
    if (start, end, step) == (0, LAST, 1):
        return node.value("self")
    bounds = [node.vector([bound], graph) for bound in (start, end)]
    return graph.call(slice_, node.value("self"), *bounds, (node.axis("dim", "self"),), (step,))


@reads_aten("index_select.default")
def read_aten_index_select(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(gather, node.value("self"), node.value("index"), axis=node.axis("dim", "self"))


@reads_aten("gather.default")
def read_aten_gather(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(gather_elements, node.value("self"), node.value("index"), axis=node.axis("dim", "self"))


@reads_aten("unbind.int")
def read_aten_unbind(node: AtenNode, graph: GraphBuilder) -> tuple[Value, ...]:
    axis = node.axis("dim", "self")
    return tuple(graph.call(gather, node.value("self"), place, axis=axis) for place in range(len(node.output_sizes)))


@reads_aten("index.Tensor")
def read_aten_index(node: AtenNode, graph: GraphBuilder) -> Value:
    """Places along one dim, or along the first few together; masks would give a size that depends on the values."""
    chosen = [(axis, index) for axis, index in enumerate(node.get("indices")) if index is not None]
    if not chosen or any(kind not in (torch.int64, torch.int32) for kind in node.item_dtypes["indices"]):
        raise node.unsupported("its index is a mask, whose result has a size that only the values tell")
    if len(chosen) == 1:
        axis, places = chosen[0]
        return graph.call(gather, node.value("self"), places, axis=axis)
    if [axis for axis, _ in chosen] != list(range(len(chosen))):
        raise node.unsupported("it picks along several dims that are not the first ones")
    zero = graph.keep(torch.tensor(0))
    common = graph.call(torch.mul, reduce(partial(graph.call, torch.add), [places for _, places in chosen]), zero)
    columns = [graph.call(unsqueeze, graph.call(torch.add, places, common), (-1,)) for _, places in chosen]
    return graph.call(gather_nd, node.value("self"), graph.call(concat, *columns, axis=-1), batch_dims=0)


@reads_aten("roll.default")
def read_aten_roll(node: AtenNode, graph: GraphBuilder) -> Value:
    x = node.value("self")
    for shift, dim in zip(node.get("shifts"), node.get("dims") or (), strict=True):
        axis = int(dim) % node.rank("self")
        length = node.sizes["self"][axis]
        if not isinstance(length, int):
            raise node.unsupported("the dimension that it rolls is dynamic")
        cut = length - int(shift) % length
        behind = graph.call(slice_, x, (cut,), (LAST,), (axis,), (1,))
        x = graph.call(concat, behind, graph.call(slice_, x, (0,), (cut,), (axis,), (1,)), axis=axis)
    return x
