"""Reductions over axes. Axes are Python numbers in the graph, or a tensor where the file computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from workers.engine.ops.aten import of_dtype, reads_aten
from workers.engine.ops.axis_rules import accumulated, along_axes, reduced
from workers.engine.ops.base import register
from workers.engine.ops.plain import Plain, plain

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode

Axes = Sequence[int] | Tensor | None


def as_ints(values: Sequence[int] | Tensor) -> list[int]:
    """Plain numbers; sizes that a trace keeps symbolic stay so."""
    numbers = values.tolist() if isinstance(values, Tensor) else values
    return [cast(int, value) if isinstance(value, torch.SymInt) else int(value) for value in numbers]


def _reduced(
    x: Tensor, axes: Axes, keepdims: int, noop: int, reduce: Callable[[Tensor, list[int], bool], Tensor]
) -> Tensor:
    """Without axes everything is reduced, or with `noop` nothing."""
    chosen = [] if axes is None else as_ints(axes)
    if not chosen and noop:
        return x
    dims = [axis % x.dim() for axis in chosen] if chosen else list(range(x.dim()))
    return reduce(x, dims, bool(keepdims)) if dims else x


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(x: Tensor, dims: list[int], keep: bool, sign: int) -> Tensor:
    """The maximum (sign -1) or minimum (1); of nothing it is the worst value of the type."""
    if x.numel():
        return x.amax(dims, keepdim=keep) if sign < 0 else x.amin(dims, keepdim=keep)
    if x.dtype is torch.bool:
        worst: float = sign > 0
    elif x.is_floating_point():
        worst = sign * math.inf
    else:
        worst = torch.iinfo(x.dtype).max if sign > 0 else torch.iinfo(x.dtype).min
    shape = [1 if axis in dims else size for axis, size in enumerate(x.shape)]
    full = torch.full(shape, worst, dtype=x.dtype, device=x.device)
    return full if keep else full.squeeze(dims)


def reduce_sum(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(
        x, axes, keepdims, noop_with_empty_axes, lambda t, dims, keep: t.sum(dims, keepdim=keep, dtype=t.dtype)
    )


def reduce_mean(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda t, dims, keep: t.mean(dims, keepdim=keep))


def reduce_max(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda t, dims, keep: _extreme(t, dims, keep, -1))


def reduce_min(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda t, dims, keep: _extreme(t, dims, keep, 1))


def reduce_prod(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(x, axes, keepdims, noop_with_empty_axes, _product)


def reduce_l1(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return reduce_sum(x.abs(), axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def reduce_l2(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return reduce_sum(x * x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes).sqrt()


def reduce_sum_square(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return reduce_sum(x * x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def reduce_log_sum(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return reduce_sum(x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes).log()


def reduce_log_sum_exp(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(x, axes, keepdims, noop_with_empty_axes, torch.logsumexp)


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keepdim=bool(keepdims))
    return x.argmax(axis, keepdim=bool(keepdims))


def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmin(axis, keepdim=bool(keepdims))
    return x.argmin(axis, keepdim=bool(keepdims))


def cumulative_sum(x: Tensor, axis: int | Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = int(axis)
    ordered = x.flip(dim) if reverse else x
    summed = ordered.cumsum(dim, dtype=x.dtype)
    if exclusive:
        summed = summed - ordered
    return summed.flip(dim) if reverse else summed


def cumulative_product(x: Tensor, axis: int | Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = int(axis) % x.dim()
    ordered = x.flip(dim) if reverse else x
    if exclusive:
        ordered = torch.cat([torch.ones_like(ordered.narrow(dim, 0, 1)), ordered.narrow(dim, 0, x.shape[dim] - 1)], dim)
    product = ordered.cumprod(dim, dtype=x.dtype)
    return product.flip(dim) if reverse else product


def top_k(
    x: Tensor,
    k: Sequence[int] | Tensor,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,  # noqa: A002, ARG001 (ONNX has it; without it any order is right, so this one too)
) -> tuple[Tensor, Tensor]:
    """Equal values come in the order of their places, as ONNX Runtime has them."""
    order = x.argsort(dim=axis, descending=bool(largest), stable=True)
    chosen = order.narrow(axis, 0, min(as_ints(k)[0], x.shape[axis]))
    return x.gather(axis, chosen), chosen


def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    variance, mean = torch.var_mean(x, tuple(axes), correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


def _reduction(name: str, function: Callable[..., Any], since: int, **declarations: Any) -> None:
    plain(
        name,
        function,
        axes=reduced,
        literals=frozenset({1}),
        attribute_before={1: ("axes", since)},
        attribute_since={"noop_with_empty_axes": since},
        **declarations,
    )


_reduction("ReduceSum", reduce_sum, 13)
_reduction("ReduceMean", reduce_mean, 18)
_reduction("ReduceMax", reduce_max, 18)
_reduction("ReduceMin", reduce_min, 18)
_reduction("ReduceProd", reduce_prod, 18)
_reduction("ReduceL1", reduce_l1, 18)
_reduction("ReduceL2", reduce_l2, 18)
_reduction("ReduceSumSquare", reduce_sum_square, 18)
_reduction("ReduceLogSum", reduce_log_sum, 18)
_reduction("ReduceLogSumExp", reduce_log_sum_exp, 18)
plain("ArgMax", arg_max, axes=reduced)
plain("ArgMin", arg_min, axes=reduced)
plain("CumProd", cumulative_product, axes=accumulated, literals=frozenset({1}), opset=26)
plain("CumSum", cumulative_sum, axes=accumulated, literals=frozenset({1}))


@register
class TopK(Plain):
    name = "TopK"
    functions = (top_k,)
    literals = frozenset({1})
    results = 2

    def read_inputs(self, node: OnnxNode) -> list[Any]:
        """`k` was an attribute, a plain number, before opset 10."""
        return [node.input(0), (node.attribute("k"),)] if node.opset < 10 else super().read_inputs(node)

    def read_attributes(self, node: OnnxNode, function: Callable[..., Any]) -> dict[str, Any]:
        without = {name: value for name, value in node.attributes.items() if name != "k"}
        return super().read_attributes(replace(node, attributes=without), function)


plain("MeanVarianceNormalization", mean_variance_normalization, axes=along_axes)


ATEN_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "mean": reduce_mean,
    "sum": reduce_sum,
    "prod": reduce_prod,
    "amax": reduce_max,
    "amin": reduce_min,
    "max": reduce_max,
    "min": reduce_min,
    "logsumexp": reduce_log_sum_exp,
}


@reads_aten(
    "mean.dim", "mean.default", "sum.dim_IntList", "sum.default", "prod.dim_int", "amax.default", "amin.default",
    "max.default", "min.default", "logsumexp.default",
)  # fmt: skip
def read_aten_reduction(node: AtenNode, graph: GraphBuilder) -> Value:
    kind, dims = ATEN_REDUCTIONS[node.target.split(".")[0]], node.get("dim")
    dims = [] if dims is None else dims if isinstance(dims, list) else [dims]
    axes = tuple(int(axis) for axis in dims) or None
    keep = int(node.get("keepdim", False))
    x = of_dtype(node.value("self"), node.output_dtypes[0] or torch.float32, graph)
    return graph.call(kind, x, axes, keepdims=keep, noop_with_empty_axes=0)


@reads_aten("max.dim", "min.dim")
def read_aten_extreme(node: AtenNode, graph: GraphBuilder) -> tuple[Value, ...]:
    """Values and their places."""
    value, place = (reduce_max, arg_max) if node.target == "max.dim" else (reduce_min, arg_min)
    x, axis, keep = node.value("self"), int(node.get("dim")), int(node.get("keepdim", False))
    values = graph.call(value, x, (axis,), keepdims=keep, noop_with_empty_axes=0)
    return values, graph.call(place, x, axis=axis, keepdims=keep)


@reads_aten("linalg_vector_norm.default")
def read_aten_norm(node: AtenNode, graph: GraphBuilder) -> Value:
    order, x = node.get("ord", 2), node.value("self")
    if order == math.inf:
        x = graph.call(torch.abs, x)
    kind = {1: reduce_l1, 2: reduce_l2, math.inf: reduce_max}.get(order)
    if kind is None:
        raise node.unsupported("its order is neither 1, 2 nor infinity")
    axes = tuple(int(axis) for axis in node.get("dim") or ()) or None
    return graph.call(kind, x, axes, keepdims=int(node.get("keepdim", False)), noop_with_empty_axes=0)


@reads_aten("topk.default")
def read_aten_topk(node: AtenNode, graph: GraphBuilder) -> tuple[Value, ...]:
    ways = {"axis": int(node.get("dim", -1)), "largest": int(node.get("largest", True)), "sorted": 1}
    return graph.call_each(2, top_k, node.value("self"), node.vector([node.get("k")], graph), **ways)


@reads_aten("cumsum.default")
def read_aten_cumulative_sum(node: AtenNode, graph: GraphBuilder) -> Value:
    x = of_dtype(node.value("self"), node.output_dtypes[0] or torch.float32, graph)
    return graph.call(cumulative_sum, x, node.axis("dim", "self"), exclusive=0, reverse=0)


@reads_aten("cumprod.default")
def read_aten_cumulative_product(node: AtenNode, graph: GraphBuilder) -> Value:
    x = of_dtype(node.value("self"), node.output_dtypes[0] or torch.float32, graph)
    return graph.call(cumulative_product, x, node.axis("dim", "self"), exclusive=0, reverse=0)


@reads_aten("argmax.default", "argmin.default")
def read_aten_argmax(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.get("dim") is None:
        raise node.unsupported("it has no dim")
    kind = arg_max if node.target == "argmax.default" else arg_min
    return graph.call(kind, node.value("self"), axis=int(node.get("dim")), keepdims=int(node.get("keepdim", False)))
