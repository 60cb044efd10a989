"""Reductions over axes. Axes are Python numbers in the graph, or a tensor where the file computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workers.engine.ops.plain import plain

Axes = Sequence[int] | Tensor | None


def as_ints(values: Sequence[int] | Tensor) -> list[int]:
    return [int(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]


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


def reduce_sum(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(
        x, axes, keepdims, noop_with_empty_axes, lambda t, dims, keep: t.sum(dims, keepdim=keep, dtype=t.dtype)
    )


def reduce_mean(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda t, dims, keep: t.mean(dims, keepdim=keep))


def reduce_max(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda t, dims, keep: t.amax(dims, keepdim=keep))


def reduce_min(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda t, dims, keep: t.amin(dims, keepdim=keep))


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
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda t, dims, keep: torch.logsumexp(t, dims, keep))


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


def top_k(
    x: Tensor,
    k: Sequence[int] | Tensor,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,  # noqa: A002 (ONNX)
) -> tuple[Tensor, Tensor]:
    """Equal values come in the order of their places, as ONNX Runtime has them."""
    order = x.argsort(axis, descending=bool(largest), stable=True)
    chosen = order.narrow(axis, 0, min(as_ints(k)[0], x.shape[axis]))
    return x.gather(axis, chosen), chosen


def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    variance, mean = torch.var_mean(x, tuple(axes), correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


def _reduction(name: str, function: Callable[..., Any], since: int, **declarations: Any) -> None:
    plain(
        name,
        function,
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
plain("ArgMax", arg_max)
plain("ArgMin", arg_min)
plain("CumSum", cumulative_sum, literals=frozenset({1}))
plain("TopK", top_k, literals=frozenset({1}))
plain("MeanVarianceNormalization", mean_variance_normalization)
