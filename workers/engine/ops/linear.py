"""Matrix products: layers with a stored weight, which is (out, in) in the graph however the file keeps it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx, nn

from workers.engine.encodings import ProductIntegers
from workers.engine.ops.aten import reads_aten, reads_aten_as
from workers.engine.ops.base import Op, Quantization, leaf_of, register, source_of
from workers.engine.ops.plain import Plain, attributes_of, plain
from workers.engine.ops.shapes import reshape
from workers.engine.structure.labels import HEADS, WIDTH

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.structure.labels import Dim
    from workers.engine.writers.onnx import OnnxBuilder


class Linear(nn.Module):
    """Weight (out, in), bias (out,) or None; the input is a matrix."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}"


class Projection(Linear):
    """A linear layer over the last dimension of an input of any rank: `MatMul`, and `Add` where it has a bias."""


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 (ONNX's names)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    product = (a.t() if transA else a) @ (b.t() if transB else b)
    scaled = product if alpha == 1 else product * alpha
    return scaled if c is None else scaled + (c if beta == 1 else c * beta)


@register
class Gemm(Op):
    name = "Gemm"
    modules = (Linear,)
    functions = (gemm,)
    weights: ClassVar[dict[str, int]] = {"weight": 0}
    quantization = Quantization(inputs=(0, 1), weights={"weight": 0}, bias="bias", float_output=True)

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        weight, bias = node.input(1), node.optional(2)
        options = {name: node.attribute(name, default) for name, default in _GEMM_DEFAULTS.items()}
        if isinstance(weight, Tensor) and not isinstance(bias, fx.Node) and _is_layer(options, weight, bias):
            weight, bias = node.weight(1), node.optional_weight(2)
            rows = graph.parameter(weight) if options["transB"] else graph.transposed_parameter(weight)
            if bias is not None and bias.shape != rows.shape[:1]:
                bias = graph.name(bias.reshape(-1).expand(rows.shape[0]), node.input_names[2])
            layer = Linear(rows, None if bias is None else graph.parameter(bias))
            return graph.module(node.layer(1), layer, node.input(0))
        return graph.call(gemm, node.input(0), weight, bias, **options)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        if node.op == "call_function":
            onnx.emit(node, "Gemm", node.args, **attributes_of(node))
        elif not _written_with_own_kernel(node, onnx):
            weights = [onnx.weight(node, "weight"), onnx.weight(node, "bias")]
            onnx.emit(node, "Gemm", [node.args[0], *weights], transB=1)

    def axes(self, node: fx.Node, axes: Axes) -> None:
        if node.op == "call_module":
            linear_axes(node, axes)
            return
        (left, right), flipped = (axes.of(source_of(node, place)) for place in (0, 1)), node.kwargs
        rows, inner = reversed(left) if flipped["transA"] else left
        taken, columns = reversed(right) if flipped["transB"] else right
        axes.same(inner, taken)
        axes.give(node, [rows, columns])
        if len(node.args) > 2 and isinstance(node.args[2], fx.Node):
            bias = axes.of(node.args[2])
            for dim, own in zip(reversed(bias), (columns, rows), strict=False):
                if dim.size == own.size:
                    axes.same(own, dim)

    def macs(self, node: fx.Node) -> int:
        if node.op == "call_module":
            return math.prod(node.meta["shape"]) * leaf_of(node, Linear).weight.shape[1]
        inner = source_of(node).meta["shape"][0 if node.kwargs["transA"] else 1]
        return math.prod(node.meta["shape"]) * int(inner)


_GEMM_DEFAULTS: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def _is_layer(options: dict[str, Any], weight: Tensor, bias: Tensor | None) -> bool:
    if options["alpha"] != 1 or options["beta"] != 1 or options["transA"] or weight.dim() != 2:
        return False
    out = weight.shape[0 if options["transB"] else 1]
    return bias is None or bias.numel() == 1 or tuple(bias.shape) in ((out,), (1, out))


@register
class MatMul(Op):
    name = "MatMul"
    modules = (Projection,)
    functions = (torch.matmul,)
    weights: ClassVar[dict[str, int]] = {"weight": 0}
    quantization = Quantization(inputs=(0, 1), weights={"weight": 0}, float_output=True)

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        left, right = node.input(0), node.input(1)
        if isinstance(left, fx.Node) and isinstance(right, Tensor) and right.dim() == 2 and right.is_floating_point():
            layer = Projection(graph.transposed_parameter(node.weight(1)), None)
            return graph.module(node.layer(1), layer, left)
        return graph.call(torch.matmul, left, right)

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        if node.op == "call_function":
            onnx.emit(node, "MatMul", node.args)
            return
        if _written_with_own_kernel(node, onnx):
            return
        weight, bias = onnx.weight(node, "weight", transpose=True), onnx.weight(node, "bias")
        if not bias:
            onnx.emit(node, "MatMul", [node.args[0], weight])
            return
        called = node.meta.get("product", {})
        name = called.get("value", f"{node.name}_product")
        product = onnx.node("MatMul", [node.args[0], weight], name, label=called.get("node"))
        onnx.emit(node, "Add", [product, bias])

    def axes(self, node: fx.Node, axes: Axes) -> None:
        """Dimensions before the last two are attention heads, where any of them can give units at all."""
        if node.op == "call_module":
            linear_axes(node, axes)
            return
        left, right = axes.of(source_of(node)), axes.of(source_of(node, 1))
        if min(len(left), len(right)) < 2:
            axes.freeze(node, "it is multiplied with a vector that the model computes")
            return
        axes.same(left[-1], right[-2])
        for width in (left[-1], right[-1]):
            axes.prefer(width, WIDTH)
        batch = axes.broadcast([left[:-2], right[:-2]], axes.shape(node)[:-2])
        for dim in batch:
            axes.prefer(dim, HEADS)
        axes.give(node, [*batch, left[-2], right[-1]])

    def macs(self, node: fx.Node) -> int:
        if node.op == "call_module":
            return math.prod(node.meta["shape"]) * leaf_of(node, Linear).weight.shape[1]
        return math.prod(node.meta["shape"]) * int(source_of(node).meta["shape"][-1])


def _written_with_own_kernel(node: fx.Node, onnx: OnnxBuilder) -> bool:
    encoding = onnx.encoding(node, "weight")
    if not isinstance(encoding, ProductIntegers):
        return False
    encoding.multiply(onnx, node, onnx.weight(node, "bias"))
    return True


def linear_axes(node: fx.Node, axes: Axes) -> None:
    """Weight (out, in) over the last dimension."""
    given = axes.of(source_of(node))
    out, taken = axes.weight(node, "weight", ["makes", "takes"])
    axes.same(given[-1], taken)
    axes.vector(node, "bias", out, "makes")
    axes.give(node, [*given[:-1], out])


def determinant(x: Tensor) -> Tensor:
    return torch.linalg.det(x)


plain("Det", determinant)


def einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


@register
class Einsum(Plain):
    """Only the letters, commas and arrows of an equation reach generated code."""

    name = "Einsum"
    functions = (einsum,)
    folds = 0

    def axes(self, node: fx.Node, axes: Axes) -> None:
        """Letters are dimensions; those of the output that several tensors have are attention heads."""
        terms, _, result = str(node.kwargs["equation"]).partition("->")
        letters = terms.split(",")
        if "." in terms or not result or any(len(set(term)) < len(term) for term in letters):
            axes.freeze(node, "Einsum takes its equation apart in a way that has no rule")
            return
        dims: dict[str, Dim] = {}
        for term, source in zip(letters, node.args, strict=True):
            for letter, dim in zip(term, axes.of(source), strict=True):  # type: ignore[arg-type]
                if letter in dims:
                    axes.same(dims[letter], dim)
                    axes.prefer(dim, HEADS if letter in result else WIDTH)
                dims.setdefault(letter, dim)
        summed = {letter for letter in dims if letter not in result and terms.count(letter) < 2}
        for letter in summed:
            axes.keep(dims[letter], "Einsum works across it")
        axes.give(node, [dims[letter] for letter in result])

    def macs(self, node: fx.Node) -> int:
        """One product for each setting of the letters; what an ellipsis stands for is counted as the output has it."""
        terms = str(node.kwargs["equation"]).partition("->")[0].split(",")
        if len(terms) < 2:  # one tensor is only summed
            return 0
        sizes: dict[str, int] = {}
        for term, source in zip(terms, node.args, strict=True):
            shape = source.meta["shape"]  # type: ignore[union-attr]
            before, dots, after = term.partition("...")
            sizes.update(zip(before, shape, strict=False))
            sizes.update(zip(reversed(after), reversed(shape), strict=False))
            inner = shape[len(before) : len(shape) - len(after)] if dots else ()
            sizes["..."] = max(sizes.get("...", 1), math.prod(inner))
        return math.prod(sizes.values())

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        equation = _equation(node.attribute("equation", ""))
        if equation is None:
            raise node.invalid("its equation is not one of letters, commas and an arrow")
        return graph.call(einsum, *(node.input(index) for index in range(len(node.inputs))), equation=equation)


def _equation(text: object) -> str | None:
    """Without spaces; None where it is not one."""
    equation = "".join(str(text).split())
    known = set(equation) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.->")
    return equation if equation and known else None


@reads_aten("einsum.default")
def read_aten_einsum(node: AtenNode, graph: GraphBuilder) -> Value:
    equation = _equation(node.get("equation"))
    if equation is None:
        raise node.unsupported("its equation is not one of letters, commas and an arrow")
    return graph.call(einsum, *node.get("tensors"), equation=equation)


reads_aten_as(torch.matmul, "bmm.default", "mv.default")


@reads_aten("matmul.default", "mm.default")
def read_aten_matmul(node: AtenNode, graph: GraphBuilder) -> Value:
    """A layer where the right one is a stored matrix."""
    right = "mat2" if node.target == "mm.default" else "other"
    x, matrix = node.value("self"), node.known(node.value(right))
    if isinstance(x, fx.Node) and isinstance(matrix, Tensor) and matrix.dim() == 2 and matrix.is_floating_point():
        return graph.module(node.layer(right), Projection(graph.transposed_parameter(matrix), None), x)
    return graph.call(torch.matmul, x, node.value(right))


@reads_aten("baddbmm.default")
def read_aten_baddbmm(node: AtenNode, graph: GraphBuilder) -> Value:
    product = graph.call(torch.matmul, node.value("batch1"), node.value("batch2"))
    parts = [(product, node.get("alpha", 1)), (node.value("self"), node.get("beta", 1))]
    scaled = [
        part if factor == 1 else graph.call(torch.mul, part, graph.keep(torch.tensor(float(factor))))
        for part, factor in parts
    ]
    return graph.call(torch.add, *scaled)


@reads_aten("linear.default", "addmm.default")
def read_aten_linear(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.target == "addmm.default":
        return _read_aten_addmm(node, graph)
    weight, bias = node.weight("weight"), node.optional_weight("bias")
    kind = Linear if node.rank("input") == 2 else Projection
    layer = kind(graph.parameter(weight), None if bias is None else graph.parameter(bias))
    return graph.module(node.layer("weight"), layer, node.value("input"))


def _read_aten_addmm(node: AtenNode, graph: GraphBuilder) -> Value:
    """A layer where the matrix is stored, over the last dimension of what was only made a matrix for this product."""
    x, matrix, bias = node.value("mat1"), node.value("mat2"), node.value("self")
    scaled = node.get("beta", 1) != 1 or node.get("alpha", 1) != 1
    if scaled or not isinstance(matrix, Tensor) or not isinstance(bias, Tensor) or bias.dim() != 1:
        options = _GEMM_DEFAULTS | {"alpha": float(node.get("alpha", 1)), "beta": float(node.get("beta", 1))}
        return graph.call(gemm, x, matrix, bias, **options)
    weights = graph.transposed_parameter(matrix), graph.parameter(bias)
    whole: Any = x.args[0] if isinstance(x, fx.Node) and x.target is reshape else None
    sizes: tuple[Any, ...] = whole.meta.get("sizes", ()) if isinstance(whole, fx.Node) else ()
    if len(sizes) < 3 or sizes[-1] != matrix.shape[0]:
        return graph.module(node.layer("mat2"), Linear(*weights), x)
    made = graph.module(node.layer("mat2"), Projection(*weights), whole)
    made.meta["sizes"] = (*sizes[:-1], matrix.shape[1])
    return graph.call(reshape, made, (-1, matrix.shape[1]), allowzero=0)
