"""Normalization over batches and over the last dimensions, as leaves with scale and bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workers.engine.ops.aten import operands_of, reads_aten
from workers.engine.ops.base import leaf_of, register, source_of
from workers.engine.ops.elementwise import divide
from workers.engine.ops.layers import LayerOp
from workers.engine.ops.reductions import reduce_mean

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder


class BatchNorm(_BatchNorm):
    """torch's batch normalization for inputs of any rank, made from what a file holds."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, eps: float, momentum: float
    ) -> None:
        """`momentum` as in torch: the share of the new batch."""
        super().__init__(weight.shape[0], eps=eps, momentum=momentum, device="meta")
        self.register_parameter("weight", nn.Parameter(weight.clone()))
        self.register_parameter("bias", nn.Parameter(bias.clone()))
        self.register_buffer("running_mean", mean.clone())
        self.register_buffer("running_var", variance.clone())
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of every channel."""
        return self.get_buffer("running_mean"), self.get_buffer("running_var")

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's own signature)
        """Any rank will do."""


class LayerNorm(nn.Module):
    """Scale and bias of the shape of the last dimensions, from `axis` on; `axis` counts from the end."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, *, axis: int, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.axis = axis
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normal = x.shape[self.axis :]
        bias = None if self.bias is None else self.bias.expand(normal)
        return F.layer_norm(x, normal, self.weight.expand(normal), bias, self.eps)


class RMSNorm(nn.Module):
    """Scale of the shape of the last dimensions, from `axis` on; `axis` counts from the end (arXiv:1910.07467)."""

    def __init__(self, weight: nn.Parameter, *, axis: int, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.axis = axis
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[self.axis :], self.weight.expand(x.shape[self.axis :]), self.eps)


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,  # noqa: ARG001 (matters for training only)
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 (the type of the sums: read as float32 only)
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and mean and inverse deviation, which PyTorch's own keeps to itself."""
    dims = tuple(range(axis % x.dim(), x.dim()))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    normal = ((wide - mean) * inverse).to(x.dtype) * scale
    return normal if bias is None else normal + bias, mean, inverse


def rms_normalization(
    x: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 (as above)
) -> Tensor:
    return F.rms_norm(x, x.shape[axis:], None, epsilon) * scale


def _write_scaled(node: fx.Node, onnx: OnnxBuilder, values: Any, weights: list[str]) -> None:
    """Values over the root of their mean square, as exporters write it and runtimes know it again."""
    module: Any = onnx.module(node)
    name, dtype = node.name, module.weight.dtype
    squares = onnx.node("Pow", [values, onnx.number(2, dtype)], f"{name}_squares")
    variance = onnx.mean(squares, range(module.axis, 0), f"{name}_variance")
    shifted = onnx.node("Add", [variance, onnx.number(module.eps, dtype)], f"{name}_shifted")
    normal = onnx.node("Div", [values, onnx.node("Sqrt", [shifted], f"{name}_deviation")], f"{name}_normal")
    scale, shift = weights
    if shift:
        onnx.emit(node, "Add", [onnx.node("Mul", [normal, scale], f"{name}_scaled"), shift])
    else:
        onnx.emit(node, "Mul", [normal, scale])


def check_stash(node: OnnxNode) -> None:
    if node.attribute("stash_type", 1) != 1:
        raise node.refuse("stash_type is not float32")


@register
class BatchNormalization(LayerOp):
    name = "BatchNormalization"
    modules = (BatchNorm,)
    functions = (batch_normalization,)
    weight_inputs = (1, 2, 3, 4)
    opset = 14

    ignored = frozenset({"training_mode", "spatial"})

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        if node.attribute("training_mode", 0):
            raise node.refuse("it is in training mode; export the model after model.eval()")
        if len([name for name in node.outputs if name]) > 1 and node.opset >= 14:
            raise node.refuse("its statistics as outputs are not supported; export the model after model.eval()")
        return super().read(node, graph)

    def read_layer(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        module = BatchNorm(
            *(node.weight(index) for index in range(1, 5)),
            eps=node.attribute("epsilon", 1e-5),
            momentum=1 - node.attribute("momentum", 0.9),
        )
        for index, name in enumerate(("weight", "bias", "running_mean", "running_var"), 1):
            graph.name(getattr(module, name), node.input_names[index])
        return graph.module(node.layer(1), module, node.input(0))

    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module: Any = onnx.module(node)
        names = ("weight", "bias", "running_mean", "running_var")
        onnx.emit(
            node,
            "BatchNormalization",
            [node.args[0], *(onnx.weight(node, name) for name in names)],
            epsilon=module.eps,
            momentum=1 - module.momentum,
        )

    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        dims = axes.of(source_of(node))
        for name in ("weight", "bias", "running_mean", "running_var"):
            axes.vector(node, name, dims[1], "scales")
        axes.counted_by(node, "num_features", dims[1])
        axes.give(node, dims)


@register
class LayerNormalization(LayerOp):
    name = "LayerNormalization"
    modules = (LayerNorm,)
    functions = (layer_normalization,)
    weight_inputs = (1, 2)
    results = 3
    required = 1
    opset = 17
    taken_apart = True

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        """The function also where the file asks for the mean or the deviation."""
        check_stash(node)
        return super().read(node, graph) if len(node.outputs) == 1 else self.read_function(node, graph)

    def read_layer(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        weight, bias, axis = node.weight(1), node.optional_weight(2), node.attribute("axis", -1)
        module = LayerNorm(
            graph.parameter(weight),
            None if bias is None else graph.parameter(bias),
            axis=axis,
            eps=node.attribute("epsilon", 1e-5),
        )
        return graph.module(node.layer(1), module, node.input(0))

    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module: Any = onnx.module(node)
        weights = [onnx.weight(node, "weight"), onnx.weight(node, "bias")]
        if onnx.opset >= self.opset:
            onnx.emit(node, "LayerNormalization", [node.args[0], *weights], axis=module.axis, epsilon=module.eps)
            return
        mean = onnx.mean(node.args[0], range(module.axis, 0), f"{node.name}_mean")
        centred = onnx.node("Sub", [node.args[0], mean], f"{node.name}_centred")
        _write_scaled(node, onnx, centred, weights)

    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        _normalized_axes(node, axes)


@register
class RMSNormalization(LayerOp):
    name = "RMSNormalization"
    modules = (RMSNorm,)
    functions = (rms_normalization,)
    weight_inputs = (1,)
    opset = 23
    taken_apart = True

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        check_stash(node)
        return super().read(node, graph)

    def read_layer(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        weight = graph.parameter(node.weight(1))
        module = RMSNorm(weight, axis=node.attribute("axis", -1), eps=node.attribute("epsilon", 1e-5))
        return graph.module(node.layer(1), module, node.input(0))

    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module: Any = onnx.module(node)
        inputs = [node.args[0], onnx.weight(node, "weight")]
        if onnx.opset >= self.opset:
            onnx.emit(node, "RMSNormalization", inputs, axis=module.axis, epsilon=module.eps)
        else:
            _write_scaled(node, onnx, node.args[0], [str(inputs[1]), ""])

    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        _normalized_axes(node, axes)


def _normalized_axes(node: fx.Node, axes: Axes) -> None:
    """What is normalized together changes for all where one element goes."""
    dims = axes.of(source_of(node))
    first = int(leaf_of(node, nn.Module).axis)  # type: ignore[arg-type]
    for dim in dims[first:]:
        axes.keep(dim, f"{axes.name(node)} normalizes across it")
    axes.give(node, dims)


@reads_aten("batch_norm.default", "_native_batch_norm_legit_no_training.default")
def read_aten_batch_norm(node: AtenNode, graph: GraphBuilder) -> Value:
    if node.get("training"):
        raise node.unsupported("the model was exported in training mode; call model.eval() before torch.export.export")
    mean, variance = node.weight("running_mean"), node.weight("running_var")
    weight, bias = node.optional_weight("weight"), node.optional_weight("bias")
    module = BatchNorm(
        torch.ones_like(mean) if weight is None else weight,
        torch.zeros_like(mean) if bias is None else bias,
        mean,
        variance,
        eps=float(node.get("eps", 1e-5)),
        momentum=float(node.get("momentum", 0.1)),
    )
    return graph.module(node.layer("weight", "running_mean"), module, node.value("input"))


@reads_aten("layer_norm.default")
def read_aten_layer_norm(node: AtenNode, graph: GraphBuilder) -> Value:
    normal = tuple(node.get("normalized_shape"))
    weight, bias = node.optional_weight("weight"), node.optional_weight("bias")
    module = LayerNorm(
        nn.Parameter(torch.ones(normal) if weight is None else weight.clone()),
        None if bias is None else nn.Parameter(bias.clone()),
        axis=-len(normal),
        eps=float(node.get("eps", 1e-5)),
    )
    return graph.module(node.layer("weight"), module, node.value("input"))


@reads_aten("rms_norm.default")
def read_aten_rms_norm(node: AtenNode, graph: GraphBuilder) -> Value:
    """In smaller ops: its own needs a newer opset than runtimes have."""
    x, axes = node.value("input"), tuple(range(-len(node.get("normalized_shape")), 0))
    given = node.get("eps")
    eps = torch.finfo(node.dtype or torch.float32).eps if given is None else float(given)
    square = graph.call(reduce_mean, graph.call(torch.mul, x, x), axes, keepdims=1, noop_with_empty_axes=0)
    (small,) = operands_of(node, graph, [eps])
    normal = graph.call(divide, x, graph.call(torch.sqrt, graph.call(torch.add, square, small)))
    weight = node.optional_weight("weight")
    return normal if weight is None else graph.call(torch.mul, normal, weight)
