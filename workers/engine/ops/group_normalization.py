"""Normalization of channels, alone or in groups, and of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx, nn

from workers.engine.ops.aten import reads_aten
from workers.engine.ops.axis_rules import across_channels, along_axis
from workers.engine.ops.base import leaf_of, register, source_of
from workers.engine.ops.layers import LayerOp
from workers.engine.ops.normalization import check_stash
from workers.engine.ops.plain import plain
from workers.engine.ops.shapes import reshape, shape

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder


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


@register
class GroupNormalization(LayerOp):
    name = "GroupNormalization"
    modules = (GroupNorm,)
    functions = (group_normalization,)
    weight_inputs = (1, 2)
    opset = 21

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        check_stash(node)
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


plain("LpNormalization", lp_normalization, axes=along_axis)
plain("LRN", local_response_normalization, axes=across_channels)


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
