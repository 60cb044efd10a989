"""Normalization, as leaves with scale and bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workers.engine.ops.aten import operands_of, reads_aten
from workers.engine.ops.axis_rules import across_channels, along_axis
from workers.engine.ops.base import leaf_of, register, source_of
from workers.engine.ops.elementwise import divide
from workers.engine.ops.layers import LayerOp
from workers.engine.ops.plain import plain
from workers.engine.ops.reductions import reduce_mean
from workers.engine.ops.shapes import reshape, shape

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


class GroupNorm(nn.Module):
    """Scale and bias (channels,)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, *, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.groups = groups
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class InstanceNorm(nn.Module):
    """Scale and bias (channels,)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, *, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


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


def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 (as above)
) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = torch.linalg.vector_norm(x, p, dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def local_response_normalization(
    x: Tensor, *, alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0, size: int
) -> Tensor:
    squares = (x * x).movedim(1, -1).reshape(-1, 1, x.shape[1])
    squares = F.pad(squares, ((size - 1) // 2, size // 2))
    means = F.avg_pool1d(squares, size, 1).reshape(*x.movedim(1, -1).shape).movedim(-1, 1)
    return x / (bias + alpha * means) ** beta


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


def _check_stash(node: OnnxNode) -> None:
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
        _check_stash(node)
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
        _check_stash(node)
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
            _write_scaled(node, onnx, node.args[0], [inputs[1], ""])

    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        _normalized_axes(node, axes)


@register
class GroupNormalization(LayerOp):
    name = "GroupNormalization"
    modules = (GroupNorm,)
    functions = (group_normalization,)
    weight_inputs = (1, 2)
    opset = 21

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        _check_stash(node)
        return super().read(node, graph) if node.opset >= 21 else self._read_per_group(node, graph)

    def _read_per_group(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        """Before opset 21 the scale was one of each group: an instance normalization over groups."""
        x = node.input(0)
        grouped = graph.call(reshape, x, (0, int(node.attribute("num_groups")), -1), allowzero=0)
        epsilon = float(node.attribute("epsilon", 1e-5))
        normal = graph.call(instance_normalization, grouped, node.input(1), node.input(2), epsilon=epsilon)
        return graph.call(reshape, normal, graph.call(shape, x, start=0), allowzero=0)

    def read_layer(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        module = GroupNorm(
            graph.parameter(node.weight(1)),
            graph.parameter(node.weight(2)),
            groups=node.attribute("num_groups"),
            eps=node.attribute("epsilon", 1e-5),
        )
        return graph.module(node.layer(1), module, node.input(0))

    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module: Any = onnx.module(node)
        weights = [onnx.weight(node, "weight"), onnx.weight(node, "bias")]
        inputs = [node.args[0], *weights]
        onnx.emit(node, "GroupNormalization", inputs, num_groups=module.groups, epsilon=module.eps)

    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        """Whole groups may go: the others never see them."""
        dims = axes.of(source_of(node))
        groups, channels = axes.factors(dims[1], [leaf_of(node, GroupNorm).groups, -1])
        axes.keep(channels, f"{axes.name(node)} normalizes across the channels of a group")
        for name in ("weight", "bias"):
            axes.vector(node, name, dims[1], "scales")
        axes.counted_by(node, "groups", groups)
        for dim in dims[2:]:
            axes.keep(dim, f"{axes.name(node)} normalizes across it")
        axes.give(node, dims)


@register
class InstanceNormalization(LayerOp):
    name = "InstanceNormalization"
    modules = (InstanceNorm,)
    functions = (instance_normalization,)
    weight_inputs = (1, 2)

    def read_layer(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        weight, bias = graph.parameter(node.weight(1)), graph.parameter(node.weight(2))
        module = InstanceNorm(weight, bias, eps=node.attribute("epsilon", 1e-5))
        return graph.module(node.layer(1), module, node.input(0))

    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        module: Any = onnx.module(node)
        weights = [onnx.weight(node, "weight"), onnx.weight(node, "bias")]
        onnx.emit(node, "InstanceNormalization", [node.args[0], *weights], epsilon=module.eps)

    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        dims = axes.of(source_of(node))
        for name in ("weight", "bias"):
            axes.vector(node, name, dims[1], "scales")
        for dim in dims[2:]:
            axes.keep(dim, f"{axes.name(node)} normalizes across it")
        axes.give(node, dims)


def _normalized_axes(node: fx.Node, axes: Axes) -> None:
    """What is normalized together changes for all where one element goes."""
    dims = axes.of(source_of(node))
    first = int(leaf_of(node, nn.Module).axis)  # type: ignore[arg-type]
    for dim in dims[first:]:
        axes.keep(dim, f"{axes.name(node)} normalizes across it")
    axes.give(node, dims)


plain("LpNormalization", lp_normalization, axes=along_axis)
plain("LRN", local_response_normalization, axes=across_channels)


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


@reads_aten("group_norm.default")
def read_aten_group_norm(node: AtenNode, graph: GraphBuilder) -> Value:
    channels = node.sizes["input"][1]
    weight, bias = node.optional_weight("weight"), node.optional_weight("bias")
    if not isinstance(channels, int):
        raise node.unsupported("its number of channels is dynamic")
    module = GroupNorm(
        nn.Parameter(torch.ones(channels)) if weight is None else graph.parameter(weight),
        nn.Parameter(torch.zeros(channels)) if bias is None else graph.parameter(bias),
        groups=int(node.get("num_groups")),
        eps=float(node.get("eps", 1e-5)),
    )
    return graph.module(node.layer("weight"), module, node.value("input"))


@reads_aten("instance_norm.default")
def read_aten_instance_norm(node: AtenNode, graph: GraphBuilder) -> Value:
    channels = node.sizes["input"][1]
    weight, bias = node.optional_weight("weight"), node.optional_weight("bias")
    if not node.get("use_input_stats"):
        raise node.unsupported("it uses running statistics")
    if not isinstance(channels, int):
        raise node.unsupported("its number of channels is dynamic")
    module = InstanceNorm(
        nn.Parameter(torch.ones(channels)) if weight is None else graph.parameter(weight),
        nn.Parameter(torch.zeros(channels)) if bias is None else graph.parameter(bias),
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
