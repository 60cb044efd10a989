"""aten ops that lay out, pick, order or make up values, in the ops that they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workers.engine.ops.aten import of_dtype, reads_aten
from workers.engine.ops.indexing import gather, one_hot, scatter_elements, slice_
from workers.engine.ops.reductions import reduce_prod, top_k
from workers.engine.ops.shapes import concat, expand, reshape, shape, space_to_depth, transpose, unsqueeze

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode


FIRST = -(1 << 62)
"""Before the first element: where a backward slice ends."""


@reads_aten("flip.default")
def read_aten_flip(node: AtenNode, graph: GraphBuilder) -> Value:
    axes = tuple(int(axis) % node.rank("self") for axis in node.get("dims"))
    count = len(axes)
    return graph.call(slice_, node.value("self"), (-1,) * count, (FIRST,) * count, axes, (-1,) * count)


@reads_aten("narrow.default")
def read_aten_narrow(node: AtenNode, graph: GraphBuilder) -> Value:
    start, length, axis = node.get("start"), node.get("length"), node.axis("dim", "self")
    if not isinstance(start, int) or not isinstance(length, int):
        raise node.unsupported("where it cuts is dynamic")
    return graph.call(slice_, node.value("self"), (start,), (start + length,), (axis,), (1,))


@reads_aten("repeat_interleave.self_int")
def read_aten_repeat_each(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.get("dim") is None:
        raise node.unsupported("it has no dim")
    axis, times = node.axis("dim", "self"), node.get("repeats")
    sizes = node.output_sizes[0]
    spread = graph.call(unsqueeze, node.value("self"), (axis + 1,))
    wide = graph.call(expand, spread, (*(1,) * (axis + 1), times, *(1,) * (len(sizes) - axis - 1)))
    after = sizes[axis + 1 :]
    if not all(isinstance(size, int) for size in after):
        if not isinstance(sizes[axis], int) or sum(not isinstance(size, int) for size in after) > 1:
            raise node.unsupported("more than one of its later dimensions is dynamic")
        after = tuple(size if isinstance(size, int) else -1 for size in after)
        return graph.call(reshape, wide, (*(0,) * axis, sizes[axis], *after), allowzero=0)
    return graph.call(reshape, wide, (*(0,) * axis, -1, *after), allowzero=0)


@reads_aten("hstack.default", "vstack.default")
def read_aten_stack_along(node: AtenNode, graph: GraphBuilder) -> Value:
    rank = len(node.output_sizes[0])
    axis = (1 if rank > 1 else 0) if node.target.startswith("hstack") else 0
    return graph.call(concat, *node.get("tensors"), axis=axis)


@reads_aten("tensor_split.sections")
def read_aten_tensor_split(node: AtenNode, graph: GraphBuilder) -> tuple[Value, ...]:
    axis, parts, start = node.axis("dim", "self"), [], 0
    for sizes in node.output_sizes:
        length = sizes[axis]
        if not isinstance(length, int):
            raise node.unsupported("the dimension that it splits is dynamic")
        parts.append(graph.call(slice_, node.value("self"), (start,), (start + length,), (axis,), (1,)))
        start += length
    return tuple(parts)


@reads_aten("channel_shuffle.default")
def read_aten_channel_shuffle(node: AtenNode, graph: GraphBuilder) -> Value:
    groups, sizes = int(node.get("groups")), node.sizes["self"]
    if not all(isinstance(size, int) for size in sizes[1:]):
        raise node.unsupported("a dimension beside the batch is dynamic")
    split = graph.call(reshape, node.value("self"), (0, groups, -1, *sizes[2:]), allowzero=0)
    order = (0, 2, 1, *range(3, len(sizes) + 1))
    return graph.call(reshape, graph.call(transpose, split, perm=order), (0, *sizes[1:]), allowzero=0)


@reads_aten("pixel_unshuffle.default")
def read_aten_pixel_unshuffle(node: AtenNode, graph: GraphBuilder) -> Value:
    """PyTorch puts the place inside a block after the channel, ONNX before it."""
    channels, block = node.sizes["self"][1], int(node.get("downscale_factor"))
    if node.rank("self") != 4 or not isinstance(channels, int):
        raise node.unsupported("its input has no four dims, or its number of channels is dynamic")
    made = graph.call(space_to_depth, node.value("self"), blocksize=block)
    order = torch.arange(channels * block**2).reshape(block**2, channels).t().flatten()
    return graph.call(gather, made, graph.keep(order), axis=1)


@reads_aten("one_hot.default")
def read_aten_one_hot(node: AtenNode, graph: GraphBuilder) -> Value:
    classes = node.output_sizes[0][-1]
    if not isinstance(classes, int):
        raise node.unsupported("the number of classes depends on the values; give num_classes")
    depth, values = graph.keep(torch.tensor(classes)), graph.keep(torch.tensor([0, 1]))
    return graph.call(one_hot, node.value("self"), depth, values, axis=-1)


@reads_aten("scatter.value", "scatter.src")
def read_aten_scatter(node: AtenNode, graph: GraphBuilder) -> Value:
    x, places = node.value("self"), node.value("index")
    if node.target == "scatter.src":
        values = node.value("src")
    else:
        values = graph.call(
            expand, of_dtype(node.get("value"), node.dtype or torch.float32, graph), graph.call(shape, places, start=0)
        )
    return graph.call(scatter_elements, x, places, values, axis=node.axis("dim", "self"), reduction="none")


@reads_aten("sort.default", "sort.stable", "argsort.default", "argsort.stable")
def read_aten_sort(node: AtenNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
    axis, x = node.axis("dim", "self", -1), node.value("self")
    length: Any = node.sizes["self"][axis]
    count = (length,) if isinstance(length, int) else graph.call(shape, x, start=axis, end=axis + 1)
    ways = {"axis": axis, "largest": int(bool(node.get("descending", False))), "sorted": 1}
    values, places = graph.call_each(2, top_k, x, count, **ways)
    return places if node.target.startswith("argsort") else (values, places)


@reads_aten("linspace.default", "eye.default", "eye.m")
def read_aten_numbers(node: AtenNode, graph: GraphBuilder) -> Value:
    names = ("start", "end", "steps") if node.target.startswith("linspace") else ("n", "m")
    numbers = [node.get(name) for name in names if node.get(name) is not None]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise node.unsupported("how many numbers it makes is dynamic")
    make = torch.linspace if node.target.startswith("linspace") else torch.eye
    return graph.keep(make(*numbers, dtype=node.output_dtypes[0]))


@reads_aten("meshgrid.indexing", "meshgrid.default")
def read_aten_meshgrid(node: AtenNode, graph: GraphBuilder) -> tuple[Value, ...]:
    lines = node.get("tensors")
    if node.get("indexing", "ij") != "ij" or not all(isinstance(line, Tensor) for line in lines):
        raise node.unsupported("its coordinates are computed, or their order is xy")
    return tuple(graph.keep(grid.contiguous()) for grid in torch.meshgrid(*lines, indexing="ij"))


@reads_aten("sym_numel.default")
def read_aten_numel(node: AtenNode, graph: GraphBuilder) -> Value:
    sizes = graph.call(shape, node.value("self"), start=0)
    return graph.call(reduce_prod, sizes, None, keepdims=0, noop_with_empty_axes=0)
