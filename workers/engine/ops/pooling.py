"""Pooling over windows and over all of space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx

from workers.engine.ops.aten import reads_aten
from workers.engine.ops.axis_rules import windowed
from workers.engine.ops.base import Quantization, register
from workers.engine.ops.constants import check_size
from workers.engine.ops.convolution import CONVOLUTIONS, same_pads, torch_pads
from workers.engine.ops.plain import Plain, plain
from workers.engine.ops.reductions import as_ints

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes

MAX_POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

Ints = Sequence[int]


def _window(
    x: Tensor, kernel: Ints, strides: Ints | None, pads: Ints | None, dilations: Ints | None, auto_pad: str
) -> tuple[list[int], list[int], list[int]]:
    """Stride, pads and dilation with defaults filled in."""
    rank = len(kernel)
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    if auto_pad.startswith("SAME"):
        sizes = x.shape[2:]
        return stride, list(same_pads(sizes, kernel, stride, dilation, upper=auto_pad == "SAME_UPPER")), dilation
    return stride, list(pads or [0] * (2 * rank)), dilation


def _overhang(x: Tensor, kernel: Ints, stride: Ints, pads: Ints, dilation: Ints) -> list[int]:
    """What must follow each axis, beyond its padding, so that the last window of `ceil_mode` is whole."""
    rank, extra = len(kernel), []
    for axis in range(rank):
        padded = x.shape[2 + axis] + pads[axis] + pads[axis + rank]
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        steps = -(-(padded - reach) // stride[axis])
        if steps * stride[axis] >= x.shape[2 + axis] + pads[axis]:  # a window that starts in the end padding is none
            steps -= 1
        extra.append(max(steps * stride[axis] + reach - padded, 0))
    return extra


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    rank = len(kernel_shape)
    stride, around, dilation = _window(x, kernel_shape, strides, pads, dilations, auto_pad)
    begins, ends = around[:rank], around[rank:]
    values = x if x.is_floating_point() else x.to(torch.float64)
    if begins != ends or any(2 * p > k for p, k in zip(begins, kernel_shape, strict=True)):
        extra = _overhang(x, kernel_shape, stride, around, dilation) if ceil_mode else [0] * rank
        ends = [end + more for end, more in zip(ends, extra, strict=True)]
        values, begins = F.pad(values, torch_pads([*begins, *ends]), value=-math.inf), [0] * rank
        ceil_mode = 0
    pooled = MAX_POOLS[rank](values, tuple(kernel_shape), stride, begins, dilation, bool(ceil_mode))
    return pooled.to(x.dtype)


def max_pool_with_places(
    x: Tensor,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
) -> tuple[Tensor, Tensor]:
    """The maxima, and where in the flat tensor they stood: its last two dimensions swapped with `storage_order` 1."""
    rank, sizes = len(kernel_shape), x.shape[2:]
    stride, around, dilation = _window(x, kernel_shape, strides, pads, dilations, auto_pad)
    extra = _overhang(x, kernel_shape, stride, around, dilation) if ceil_mode else [0] * rank
    ends = [end + more for end, more in zip(around[rank:], extra, strict=True)]
    values = x if x.is_floating_point() else x.to(torch.float64)
    padded = F.pad(values, torch_pads([*around[:rank], *ends]), value=-math.inf)
    pooled, found = MAX_POOLS[rank](padded, tuple(kernel_shape), stride, 0, dilation, return_indices=True)
    axes = torch.unravel_index(found, padded.shape[2:])
    axes = tuple(axis - begin for axis, begin in zip(axes, around[:rank], strict=True))
    order = [*range(rank - 2), rank - 1, rank - 2] if storage_order and rank > 1 else range(rank)
    place = torch.arange(math.prod(x.shape[:2]), device=x.device).reshape(*x.shape[:2], *[1] * rank)
    for axis in order:
        place = place * sizes[axis] + axes[axis]
    return pooled.to(x.dtype), place


def max_unpool(
    x: Tensor,
    places: Tensor,
    output_shape: Ints | Tensor | None = None,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
) -> Tensor:
    """The maxima back at their places among zeros; a larger `output_shape` adds zeros behind."""
    rank = len(kernel_shape)
    stride, around = strides or [1] * rank, pads or [0] * (2 * rank)
    sizes = [
        (x.shape[2 + axis] - 1) * stride[axis] - around[axis] - around[axis + rank] + kernel_shape[axis]
        for axis in range(rank)
    ]
    flat = x.new_zeros(math.prod(x.shape[:2]) * math.prod(sizes))
    spread = flat.scatter(0, places.flatten(), x.flatten()).reshape(*x.shape[:2], *sizes)
    if output_shape is None:
        return spread
    wanted = as_ints(output_shape)
    check_size(wanted)
    return F.pad(spread, torch_pads([0] * len(wanted) + [w - s for w, s in zip(wanted, spread.shape, strict=True)]))


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    count_include_pad: int = 0,
) -> Tensor:
    rank = len(kernel_shape)
    stride, around, dilation = _window(x, kernel_shape, strides, pads, dilations, auto_pad)
    begins, ends = around[:rank], around[rank:]
    plain_window = begins == ends and set(dilation) == {1}
    if plain_window and all(2 * p <= k for p, k in zip(begins, kernel_shape, strict=True)):
        return AVERAGE_POOLS[rank](x, tuple(kernel_shape), stride, begins, bool(ceil_mode), bool(count_include_pad))
    extra = _overhang(x, kernel_shape, stride, around, dilation) if ceil_mode else [0] * rank
    inside = torch.ones_like(x[:1, :1])
    if count_include_pad:
        inside, inner = F.pad(inside, torch_pads(around), value=1), F.pad(x, torch_pads(around))
        around = [0] * (2 * rank)
    else:
        inner = x
    whole = torch_pads([*around[:rank], *(end + more for end, more in zip(around[rank:], extra, strict=True))])
    counts = _sums(F.pad(inside, whole), kernel_shape, stride, dilation)
    return _sums(F.pad(inner, whole), kernel_shape, stride, dilation) / counts


def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    p: int = 2,
) -> Tensor:
    rank = len(kernel_shape)
    stride, around, dilation = _window(x, kernel_shape, strides, pads, dilations, auto_pad)
    extra = _overhang(x, kernel_shape, stride, around, dilation) if ceil_mode else [0] * rank
    whole = torch_pads([*around[:rank], *(end + more for end, more in zip(around[rank:], extra, strict=True))])
    return _sums(F.pad(x.abs() ** p, whole), kernel_shape, stride, dilation) ** (1 / p)


def _sums(x: Tensor, kernel: Ints, stride: Ints, dilation: Ints) -> Tensor:
    """The sum of every window, channel by channel."""
    rows = x.reshape(-1, 1, *x.shape[2:])
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    sums = CONVOLUTIONS[len(kernel)](rows, ones, None, tuple(stride), 0, tuple(dilation))
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return (x.abs() ** p).sum(dim=tuple(range(2, x.dim())), keepdim=True) ** (1 / p)


WINDOW = Quantization(inputs=(0,))


@register
class MaxPool(Plain):
    name = "MaxPool"
    functions = (max_pool, max_pool_with_places)
    quantization = Quantization(passes=True)
    ignored = frozenset({"storage_order"})

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        if len(node.outputs) == 1:
            return super().read(node, graph)
        attributes = self.read_attributes(node, max_pool_with_places)
        return graph.call_each(2, max_pool_with_places, node.input(0), **attributes)

    def axes(self, node: fx.Node, axes: Axes) -> None:
        if node.target is max_pool:
            windowed(self, node, axes)
        else:
            super().axes(node, axes)  # places count through all channels


plain("MaxUnpool", max_unpool, literals=frozenset({2}))
plain("AveragePool", average_pool, axes=windowed, quantization=WINDOW, attribute_since={"dilations": 19})
plain("LpPool", lp_pool, axes=windowed, attribute_since={"dilations": 18, "ceil_mode": 18})
plain("GlobalAveragePool", global_average_pool, axes=windowed, quantization=WINDOW)
plain("GlobalMaxPool", global_max_pool, axes=windowed, quantization=Quantization(passes=True))
plain("GlobalLpPool", global_lp_pool, axes=windowed)


@reads_aten("max_pool1d.default", "max_pool2d.default", "max_pool3d.default")
def read_aten_max_pool(node: AtenNode, graph: GraphBuilder) -> Value:
    rank = node.rank("self") - 2
    return graph.call(
        max_pool,
        node.value("self"),
        **_aten_window(node, rank),
        dilations=node.spatial("dilation", rank, 1),
    )


@reads_aten("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def read_aten_average_pool(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.get("divisor_override") is not None:
        raise node.unsupported("divisor_override has no equal in ONNX")
    return graph.call(
        average_pool,
        node.value("self"),
        **_aten_window(node, node.rank("self") - 2),
        dilations=None,
        count_include_pad=int(node.get("count_include_pad", True)),
    )


@reads_aten("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default")
def read_aten_adaptive_average_pool(node: AtenNode, graph: GraphBuilder) -> Value:
    wanted = [int(size) for size in node.get("output_size")]
    if set(wanted) == {1}:
        return graph.call(global_average_pool, node.value("self"))
    sizes = node.sizes["self"][2:]
    pairs = zip(sizes, wanted, strict=True)
    steps = [size // out if isinstance(size, int) and size % out == 0 else 0 for size, out in pairs]
    if 0 in steps:
        raise node.unsupported(f"{list(sizes)} does not divide into {wanted} windows of one size")
    window = {"kernel_shape": tuple(steps), "strides": tuple(steps), "pads": (0,) * (2 * len(steps))}
    return graph.call(
        average_pool, node.value("self"), **window, dilations=None, ceil_mode=0, auto_pad="NOTSET", count_include_pad=0
    )


def _aten_window(node: AtenNode, rank: int) -> dict[str, Any]:
    kernel = node.spatial("kernel_size", rank, 1)
    return {
        "kernel_shape": kernel,
        "strides": node.spatial("stride", rank, 1) if node.get("stride") else kernel,
        "pads": node.spatial("padding", rank, 0) * 2,
        "ceil_mode": int(node.get("ceil_mode", False)),
        "auto_pad": "NOTSET",
    }
