"""aten ops of arithmetic that ONNX has no op of its own for, in the ops that they are made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from workers.engine.ops.aten import of_dtype, operands_of, reads_aten
from workers.engine.ops.elementwise import divide, is_infinite, maximum, minimum, modulo, power
from workers.engine.ops.indexing import gather, slice_
from workers.engine.ops.pooling import global_max_pool
from workers.engine.ops.reductions import (
    reduce_l1,
    reduce_l2,
    reduce_max,
    reduce_mean,
    reduce_min,
    reduce_prod,
    reduce_sum,
)
from workers.engine.ops.shapes import shape, squeeze

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode


def _number(node: AtenNode, graph: GraphBuilder, value: float) -> Value:
    """In the dtype of the result."""
    return of_dtype(value, node.output_dtypes[0] or torch.float32, graph)


def _floats(node: AtenNode, graph: GraphBuilder, name: str = "self") -> Value:
    return of_dtype(node.value(name), node.output_dtypes[0] or torch.float32, graph)


@reads_aten("log1p.default", "expm1.default", "log2.default", "log10.default", "exp2.default")
def read_aten_logarithm(node: AtenNode, graph: GraphBuilder) -> Value:
    x, kind = _floats(node, graph), node.target.split(".")[0]
    if kind == "log1p":
        return graph.call(torch.log, graph.call(torch.add, x, _number(node, graph, 1)))
    if kind == "expm1":
        return graph.call(torch.sub, graph.call(torch.exp, x), _number(node, graph, 1))
    if kind == "exp2":
        return graph.call(power, _number(node, graph, 2), x)
    base = math.log(2 if kind == "log2" else 10)
    return graph.call(divide, graph.call(torch.log, x), _number(node, graph, base))


@reads_aten("logit.default")
def read_aten_logit(node: AtenNode, graph: GraphBuilder) -> Value:
    x, eps = _floats(node, graph), node.get("eps")
    if eps is not None:
        x = graph.call(maximum, x, _number(node, graph, eps))
        x = graph.call(minimum, x, _number(node, graph, 1 - eps))
    return graph.call(torch.log, graph.call(divide, x, graph.call(torch.sub, _number(node, graph, 1), x)))


@reads_aten("threshold.default", "threshold_.default")
def read_aten_threshold(node: AtenNode, graph: GraphBuilder) -> Value:
    x = node.value("self")
    above = graph.call(torch.gt, x, of_dtype(node.get("threshold"), node.dtype or torch.float32, graph))
    return graph.call(torch.where, above, x, _number(node, graph, node.get("value")))


@reads_aten("rrelu.default")
def read_aten_random_relu(node: AtenNode, graph: GraphBuilder) -> Value:
    """Outside of training its slope is the middle one."""
    if node.get("training"):
        raise node.unsupported("the model was exported in training mode; call model.eval() before torch.export.export")
    x = node.value("self")
    slope = (float(node.get("lower", 1 / 8)) + float(node.get("upper", 1 / 3))) / 2
    below = graph.call(torch.mul, x, _number(node, graph, slope))
    return graph.call(torch.where, graph.call(torch.gt, x, _number(node, graph, 0)), x, below)


@reads_aten("glu.default")
def read_aten_gated(node: AtenNode, graph: GraphBuilder) -> Value:
    axis = node.axis("dim", "self", -1)
    whole = node.sizes["self"][axis]
    if not isinstance(whole, int):
        raise node.unsupported("the dimension that it halves is dynamic")
    x, half = node.value("self"), whole // 2
    value, gate = (graph.call(slice_, x, (start,), (start + half,), (axis,), (1,)) for start in (0, half))
    return graph.call(torch.mul, value, graph.call(torch.sigmoid, gate))


@reads_aten("div.Tensor_mode", "div.Scalar_mode", "floor_divide.default", "floor_divide.Scalar", "trunc.default")
def read_aten_rounded_division(node: AtenNode, graph: GraphBuilder) -> Value:
    """Integers are divided towards zero already, and rounded down only where signs differ."""
    down = node.target.startswith("floor") or node.get("rounding_mode") == "floor"
    if node.target == "trunc.default":
        return _towards_zero(node.value("self"), graph)
    a, b = operands_of(node, graph, [node.get("self"), node.get("other")])
    whole = (node.output_dtypes[0] or torch.float32).is_floating_point
    if whole and node.get("rounding_mode", "floor") is None:
        return graph.call(divide, a, b)
    if whole:
        quotient = graph.call(divide, a, b)
        return graph.call(torch.floor, quotient) if down else _towards_zero(quotient, graph)
    if not down:
        return graph.call(divide, a, b)
    return graph.call(divide, graph.call(torch.sub, a, graph.call(modulo, a, b, fmod=0)), b)


def _towards_zero(x: Value, graph: GraphBuilder) -> Value:
    return graph.call(torch.mul, graph.call(torch.sign, x), graph.call(torch.floor, graph.call(torch.abs, x)))


@reads_aten("frac.default")
def read_aten_fraction(node: AtenNode, graph: GraphBuilder) -> Value:
    return graph.call(torch.sub, node.value("self"), _towards_zero(node.value("self"), graph))


@reads_aten("remainder.Scalar", "remainder.Tensor", "fmod.Scalar", "fmod.Tensor")
def read_aten_remainder(node: AtenNode, graph: GraphBuilder) -> Value:
    """ONNX has no remainder of floats with the sign of the divisor."""
    a, b = operands_of(node, graph, [node.get("self"), node.get("other")])
    if node.target.startswith("fmod"):
        return graph.call(modulo, a, b, fmod=1)
    if not (node.output_dtypes[0] or torch.float32).is_floating_point:
        return graph.call(modulo, a, b, fmod=0)
    return graph.call(torch.sub, a, graph.call(torch.mul, b, graph.call(torch.floor, graph.call(divide, a, b))))


@reads_aten("hypot.default")
def read_aten_hypotenuse(node: AtenNode, graph: GraphBuilder) -> Value:
    sides = [node.value("self"), node.value("other")]
    return graph.call(torch.sqrt, graph.call(torch.add, *(graph.call(torch.mul, side, side) for side in sides)))


@reads_aten("lerp.Scalar", "lerp.Tensor")
def read_aten_lerp(node: AtenNode, graph: GraphBuilder) -> Value:
    start, end, share = operands_of(node, graph, [node.get(name) for name in ("self", "end", "weight")])
    return graph.call(torch.add, start, graph.call(torch.mul, share, graph.call(torch.sub, end, start)))


@reads_aten("addcdiv.default")
def read_aten_addcdiv(node: AtenNode, graph: GraphBuilder) -> Value:
    x, over, under, factor = operands_of(
        node, graph, [node.get("self"), node.get("tensor1"), node.get("tensor2"), node.get("value", 1)]
    )
    return graph.call(torch.add, x, graph.call(torch.mul, graph.call(divide, over, under), factor))


@reads_aten("clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor")
def read_aten_clamp_between(node: AtenNode, graph: GraphBuilder) -> Value:
    x, low, high = node.value("self"), node.get("min"), node.get("max")
    if low is not None:
        x = graph.call(maximum, *operands_of(node, graph, [x, low]))
    return x if high is None else graph.call(minimum, *operands_of(node, graph, [x, high]))


@reads_aten("isnan.default", "isinf.default")
def read_aten_is_special(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.target == "isnan.default":
        return graph.call(torch.isnan, node.value("self"))
    return graph.call(is_infinite, node.value("self"), detect_negative=1, detect_positive=1)


@reads_aten("nan_to_num.default")
def read_aten_nan_to_num(node: AtenNode, graph: GraphBuilder) -> Value:
    limits = torch.finfo(node.output_dtypes[0] or torch.float32)
    x, given = node.value("self"), [node.get("nan"), node.get("posinf"), node.get("neginf")]
    nan, high, low = (
        _number(node, graph, default if number is None else number)
        for number, default in zip(given, (0.0, limits.max, limits.min), strict=True)
    )
    x = graph.call(torch.where, graph.call(torch.isnan, x), nan, x)
    for sign, number in ((1, high), (0, low)):
        infinite = graph.call(is_infinite, x, detect_negative=1 - sign, detect_positive=sign)
        x = graph.call(torch.where, infinite, number, x)
    return x


@reads_aten(
    "var.dim", "var.correction", "std.dim", "std.correction", "var_mean.dim", "var_mean.correction", "var.default",
    "std.default",
)  # fmt: skip
def read_aten_variance(node: AtenNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
    x, rank = node.value("self"), node.rank("self")
    dims = node.get("dim")
    chosen = [axis % rank for axis in (dims if isinstance(dims, list) else [dims])] if dims else list(range(rank))
    axes = tuple(chosen) if dims is None or dims == [] or isinstance(dims, list) else (int(dims) % rank,)
    keep = int(node.get("keepdim", False))
    correction = float(node.get("correction", 1) if "correction" in node.arguments else node.get("unbiased", True))
    mean = graph.call(reduce_mean, x, axes, keepdims=1, noop_with_empty_axes=0)
    centred = graph.call(torch.sub, x, mean)
    square = graph.call(torch.mul, centred, centred)
    lengths = [node.sizes["self"][axis] for axis in axes]
    if correction == 0:
        variance = graph.call(reduce_mean, square, axes, keepdims=keep, noop_with_empty_axes=0)
    else:
        total = graph.call(reduce_sum, square, axes, keepdims=keep, noop_with_empty_axes=0)
        known = [length for length in lengths if isinstance(length, int)]
        if len(known) == len(lengths):
            count: Value = _number(node, graph, max(math.prod(known) - correction, 0))
        else:
            counts = graph.call(gather, graph.call(shape, x, start=0), axes, axis=0)
            product = _made(graph.call(reduce_prod, counts, None, keepdims=0, noop_with_empty_axes=0), torch.int64)
            length = of_dtype(product, node.output_dtypes[0] or torch.float32, graph)
            count = graph.call(torch.sub, length, _number(node, graph, correction))
        variance = graph.call(divide, total, count)
    if node.target.startswith("std"):
        return graph.call(torch.sqrt, variance)
    if node.target.startswith("var_mean"):
        return variance, mean if keep else graph.call(squeeze, mean, axes)
    return variance


@reads_aten("any.dim", "any.dims", "any.default", "all.dim", "all.dims", "all.default", "count_nonzero.dim_IntList",
            "count_nonzero.default")  # fmt: skip
def read_aten_truth(node: AtenNode, graph: GraphBuilder) -> Value:
    x, dims = node.value("self"), node.get("dim")
    axes = None if dims is None or dims == [] else tuple(dims if isinstance(dims, list) else [int(dims)])
    if node.dtype is not torch.bool:
        zero = of_dtype(0, node.dtype or torch.float32, graph)
        x = graph.call(torch.logical_not, graph.call(torch.eq, x, zero))
    kind = {"any": reduce_max, "all": reduce_min, "count_nonzero": reduce_sum}[node.target.split(".")[0]]
    counted = of_dtype(_made(x, torch.bool), torch.int64, graph)
    found = graph.call(kind, counted, axes, keepdims=int(node.get("keepdim", False)), noop_with_empty_axes=0)
    if kind is reduce_sum:
        return found
    return graph.call(torch.gt, found, graph.keep(torch.tensor(0)))


def _made(x: Value, dtype: torch.dtype) -> Value:
    """Of nodes that are made here, no program tells the dtype."""
    if isinstance(x, fx.Node):
        x.meta.setdefault("dtype", dtype)
    return x


@reads_aten("cosine_similarity.default")
def read_aten_cosine(node: AtenNode, graph: GraphBuilder) -> Value:
    a, b, axis = node.value("x1"), node.value("x2"), (node.axis("dim", "x1", 1),)
    small = _number(node, graph, float(node.get("eps", 1e-8)))
    product = graph.call(reduce_sum, graph.call(torch.mul, a, b), axis, keepdims=0, noop_with_empty_axes=0)
    lengths = [
        graph.call(maximum, graph.call(reduce_l2, side, axis, keepdims=0, noop_with_empty_axes=0), small)
        for side in (a, b)
    ]
    return graph.call(divide, product, graph.call(torch.mul, *lengths))


@reads_aten("pairwise_distance.default")
def read_aten_distance(node: AtenNode, graph: GraphBuilder) -> Value:
    kind = {1.0: reduce_l1, 2.0: reduce_l2}.get(float(node.get("p", 2)))
    if kind is None:
        raise node.unsupported("its p is neither 1 nor 2")
    apart = graph.call(torch.sub, node.value("x1"), node.value("x2"))
    apart = graph.call(torch.add, apart, _number(node, graph, float(node.get("eps", 1e-6))))
    return graph.call(kind, apart, (-1,), keepdims=int(node.get("keepdim", False)), noop_with_empty_axes=0)


@reads_aten("adaptive_max_pool1d.default", "adaptive_max_pool2d.default")
def read_aten_adaptive_max(node: AtenNode, graph: GraphBuilder) -> Value:
    if any(size != 1 for size in node.get("output_size")) or node.rank("self") < 3:
        raise node.unsupported("its output is larger than one value a channel")
    return graph.call(global_max_pool, node.value("self"))


@reads_aten("_weight_norm.default")
def read_aten_weight_norm(node: AtenNode, graph: GraphBuilder) -> Value:
    """Of stored weights, so that the layer has one weight: direction times length."""
    direction, length = graph.known(node.value("v")), graph.known(node.value("g"))
    if not isinstance(direction, Tensor) or not isinstance(length, Tensor):
        raise node.unsupported("its weights are computed by the graph, not stored")
    weight = graph.keep(torch._weight_norm(direction, length, int(node.get("dim", 0))))  # noqa: SLF001 (torch's own)
    layer = node.scope or node.layer("v")
    return graph.name(weight, f"{layer.removesuffix('.parametrizations.weight')}.weight")
