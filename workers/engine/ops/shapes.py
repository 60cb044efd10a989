"""Ops that move or copy values, and those that compute with shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx

from workers.engine.ops import layout_rules as rules
from workers.engine.ops.aten import reads_aten
from workers.engine.ops.base import ANY, Quantization, register
from workers.engine.ops.plain import Plain, plain
from workers.engine.ops.reductions import as_ints

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.writers.onnx import OnnxBuilder

PASSES = Quantization(inputs=(0,), passes=True)
Ints = Sequence[int] | Tensor


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    sizes = as_ints(shape)
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the dimensions before `axis`, and the others."""
    before = axis + x.dim() if axis < 0 else axis
    return (
        x.reshape(math.prod(x.shape[:before]), -1)
        if x.numel()
        else x.reshape(math.prod(x.shape[:before]), math.prod(x.shape[before:]))
    )


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(range(x.dim() - 1, -1, -1) if perm is None else perm))


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(as_ints(axes))


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    wanted = as_ints(axes)
    rank = x.dim() + len(wanted)
    for axis in sorted(axis % rank for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


def split(x: Tensor, sizes: Ints | None = None, *, axis: int = 0, num_outputs: int) -> tuple[Tensor, ...]:
    """The last part is the shorter one where the axis does not divide."""
    if sizes is not None:
        return x.split(as_ints(sizes), axis)
    return x.split(-(-x.shape[axis] // num_outputs), axis)


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def expand(x: Tensor, sizes: Ints) -> Tensor:
    """`torch.broadcast_shapes` would do, but loads sympy, which takes seconds."""
    wanted = as_ints(sizes)
    rank = max(len(wanted), x.dim())
    own, wanted = [1] * (rank - x.dim()) + list(x.shape), [1] * (rank - len(wanted)) + wanted
    return x.expand([kept if size == 1 else size for kept, size in zip(own, wanted, strict=True)])


def tile(x: Tensor, repeats: Ints) -> Tensor:
    return x.repeat(as_ints(repeats))


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    batch, channels, height, width = x.shape
    block, depth = blocksize, channels // blocksize**2
    if mode == "DCR":
        parts = x.reshape(batch, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(batch, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, depth, height * block, width * block)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    batch, channels, height, width = x.shape
    block = blocksize
    parts = x.reshape(batch, channels, height // block, block, width // block, block)
    parts = parts.permute(0, 3, 5, 1, 2, 4) if mode == "DCR" else parts.permute(0, 1, 3, 5, 2, 4)
    return parts.reshape(batch, channels * block**2, height // block, width // block)


def trilu(x: Tensor, k: int | Tensor | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if upper else x.tril(diagonal)


plain(
    "Reshape",
    reshape,
    axes=rules.reshaped,
    folds=ANY,
    literals=frozenset({1}),
    attribute_since={"allowzero": 14},
    quantization=PASSES,
)
plain("Flatten", flatten, axes=rules.relaid, folds=ANY, quantization=PASSES)
plain("Transpose", transpose, axes=rules.transposed, folds=ANY, quantization=PASSES)
for name, function in {"Squeeze": squeeze, "Unsqueeze": unsqueeze}.items():
    plain(
        name,
        function,
        axes=rules.relaid,
        folds=ANY,
        literals=frozenset({1}),
        attribute_before={1: ("axes", 13)},
        quantization=PASSES,
    )
plain("Concat", concat, axes=rules.concatenated, quantization=Quantization(inputs=None))
plain("Shape", shape, axes=rules.sizes, opset=15)
plain("Size", size, axes=rules.elements)
plain("Expand", expand, axes=rules.expanded, literals=frozenset({1}), folds=0)
plain("Tile", tile, axes=rules.tiled, literals=frozenset({1}), folds=0)
plain("DepthToSpace", depth_to_space, axes=rules.depth_to_space, quantization=PASSES)
plain("SpaceToDepth", space_to_depth, axes=rules.space_to_depth, attribute_since={"mode": 28}, quantization=PASSES)
plain("Trilu", trilu, axes=rules.triangular, literals=frozenset({1}), opset=14)


@register
class Split(Plain):
    name = "Split"
    functions = (split,)
    axes = rules.divided
    literals = frozenset({1})
    attribute_before: ClassVar[dict[int, tuple[str, int]]] = {1: ("split", 13)}

    def read_attributes(self, node: OnnxNode, function: Any) -> dict[str, Any]:  # noqa: ARG002 (of the base)
        return {"axis": node.attribute("axis", 0), "num_outputs": len(node.outputs)}

    def read(self, node: OnnxNode, graph: GraphBuilder) -> tuple[Value, ...]:
        attributes = self.read_attributes(node, split)
        return graph.call_each(len(node.outputs), split, *self.read_inputs(node), **attributes)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        count, sized = int(node.kwargs["num_outputs"]), len(node.args) > 1 and node.args[1] is not None  # type: ignore[arg-type]
        onnx.emit(
            node,
            "Split",
            node.args,
            outputs=count,
            axis=node.kwargs["axis"],
            num_outputs=None if sized or onnx.opset < 18 else count,
        )


@reads_aten("sym_size.int")
def read_aten_size(node: AtenNode, graph: GraphBuilder) -> Value:
    axis = node.axis("dim", "self")
    return graph.call(squeeze, graph.call(shape, node.value("self"), start=axis, end=axis + 1), (0,))


@reads_aten("view.default", "reshape.default", "_unsafe_view.default")
def read_aten_reshape(node: AtenNode, graph: GraphBuilder) -> Value:
    """Two in a row that give back the first one's input are nothing."""
    x = node.value("self")
    if isinstance(x, fx.Node) and x.target is reshape and isinstance(x.args[0], fx.Node):
        before = x.args[0]
        if before.meta.get("sizes") == node.output_sizes[0]:
            return before
    wanted = node.get("size" if "size" in node.arguments else "shape")
    return graph.call(reshape, node.value("self"), node.sizes_like(wanted, "self", graph), allowzero=0)


@reads_aten("flatten.using_ints")
def read_aten_flatten(node: AtenNode, graph: GraphBuilder) -> Value:
    rank = node.rank("self")
    start, end = node.axis("start_dim", "self"), node.axis("end_dim", "self", -1)
    if start == 1 and end == rank - 1:
        return graph.call(flatten, node.value("self"), axis=1)
    after = node.output_sizes[0][start + 1 :]
    if not all(isinstance(length, int) for length in after):
        raise node.unsupported("dimensions after the flattened ones are dynamic")
    return graph.call(reshape, node.value("self"), (*(0,) * start, -1, *after), allowzero=0)


@reads_aten("unflatten.int")
def read_aten_unflatten(node: AtenNode, graph: GraphBuilder) -> Value:
    axis, sizes = node.axis("dim", "self"), node.output_sizes[0]
    after = sizes[axis:]
    if not all(isinstance(length, int) for length in after):
        raise node.unsupported("dimensions after the unflattened one are dynamic")
    return graph.call(reshape, node.value("self"), (*(0,) * axis, *after), allowzero=0)


@reads_aten("permute.default")
def read_aten_permute(node: AtenNode, graph: GraphBuilder) -> Value:
    rank = node.rank("self")
    return graph.call(transpose, node.value("self"), perm=tuple(axis % rank for axis in node.get("dims")))


@reads_aten("transpose.int", "swapaxes.default", "t.default", "numpy_T.default", "mT.default")
def read_aten_transpose(node: AtenNode, graph: GraphBuilder) -> Value:
    order = list(range(node.rank("self")))
    if node.target in ("transpose.int", "swapaxes.default"):
        names = ("dim0", "dim1") if node.target == "transpose.int" else ("axis0", "axis1")
        first, second = (node.axis(name, "self") for name in names)
        order[first], order[second] = order[second], order[first]
    elif node.target == "mT.default":
        order[-2:] = order[:-3:-1]
    else:
        order.reverse()
    return graph.call(transpose, node.value("self"), perm=tuple(order))


@reads_aten("squeeze.dim", "squeeze.dims")
def read_aten_squeeze(node: AtenNode, graph: GraphBuilder) -> Value:
    wanted, sizes = node.get("dim"), node.sizes["self"]
    axes = [axis % len(sizes) for axis in (wanted if isinstance(wanted, list) else [wanted])]
    return graph.call(squeeze, node.value("self"), tuple(axis for axis in axes if sizes[axis] == 1))


@reads_aten("unsqueeze.default")
def read_aten_unsqueeze(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(unsqueeze, node.value("self"), (int(node.get("dim")),))


@reads_aten("cat.default")
def read_aten_cat(node: AtenNode, graph: GraphBuilder) -> Value:
    """Without the empty vectors that PyTorch lets stand beside tensors of any rank: caches start as such."""
    tensors = node.get("tensors")
    parts = [part for part in tensors if not (isinstance(part, Tensor) and part.shape == (0,))]
    return graph.call(concat, *(parts or tensors), axis=int(node.get("dim", 0)))


@reads_aten("stack.default")
def read_aten_stack(node: AtenNode, graph: GraphBuilder) -> Value:
    axis = int(node.get("dim", 0))
    parts = [graph.call(unsqueeze, part, (axis,)) for part in node.get("tensors")]
    return graph.call(concat, *parts, axis=axis)


@reads_aten("chunk.default", "split.Tensor", "split_with_sizes.default")
def read_aten_split(node: AtenNode, graph: GraphBuilder) -> tuple[Value, ...]:
    axis = node.axis("dim", "self")
    lengths = [sizes[axis] for sizes in node.output_sizes]
    if not all(isinstance(length, int) for length in lengths):
        raise node.unsupported("the dimension that it splits is dynamic")
    return graph.call_each(len(lengths), split, node.value("self"), tuple(lengths), axis=axis, num_outputs=len(lengths))


@reads_aten("expand.default", "broadcast_to.default")
def read_aten_expand(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.sizes["self"] == node.output_sizes[0]:
        return node.value("self")
    wanted = [1 if length == -1 else length for length in node.get("size")]
    return graph.call(expand, node.value("self"), node.vector(wanted, graph))


@reads_aten("reshape_as.default", "view_as.default")
def read_aten_reshape_as(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(reshape, node.value("self"), graph.call(shape, node.value("other"), start=0), allowzero=1)


@reads_aten("expand_as.default")
def read_aten_expand_as(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(expand, node.value("self"), graph.call(shape, node.value("other"), start=0))


@reads_aten("repeat.default", "tile.default")
def read_aten_repeat(node: AtenNode, graph: GraphBuilder) -> Value:
    x, times = node.value("self"), node.get("repeats" if "repeats" in node.arguments else "dims")
    times = [1] * (node.rank("self") - len(times)) + times
    missing = len(times) - node.rank("self")
    if missing:
        x = graph.call(unsqueeze, x, tuple(range(missing)))
    return graph.call(tile, x, node.vector(times, graph))


@reads_aten("movedim.int")
def read_aten_movedim(node: AtenNode, graph: GraphBuilder) -> Value:
    rank = node.rank("self")
    order = list(range(rank))
    order.insert(int(node.get("destination")) % rank, order.pop(int(node.get("source")) % rank))
    return graph.call(transpose, node.value("self"), perm=tuple(order))


@reads_aten("tril.default", "triu.default")
def read_aten_triangle(node: AtenNode, graph: GraphBuilder) -> Value:
    diagonal, upper = int(node.get("diagonal", 0)), int(node.target == "triu.default")
    return graph.call(trilu, node.value("self"), diagonal, upper=upper)


@reads_aten("pixel_shuffle.default")
def read_aten_pixel_shuffle(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.rank("self") != 4:
        raise node.unsupported("its input has no four dims")
    return graph.call(depth_to_space, node.value("self"), blocksize=int(node.get("upscale_factor")), mode="CRD")
