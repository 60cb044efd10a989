"""Convolutions of one, two and three dimensions, as leaves with their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx, nn

from workers.engine.ops.aten import reads_aten
from workers.engine.ops.base import Quantization, leaf_of, register, source_of
from workers.engine.ops.layers import LayerOp

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.structure.labels import Dim
    from workers.engine.writers.onnx import OnnxBuilder

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

Ints = Sequence[int]


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], *, upper: bool
) -> tuple[int, ...]:
    """Paddings (begins, then ends) that make the output ⌈size / stride⌉ long; the odd one at the end if `upper`."""
    totals = [
        max((math.ceil(size / step) - 1) * step + (width - 1) * spread + 1 - size, 0)
        for size, width, step, spread in zip(sizes, kernel, stride, dilation, strict=True)
    ]
    small, large = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return small + large if upper else large + small


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX paddings (all begins, then all ends) in the order of `torch.nn.functional.pad`: last dimension first."""
    rank = len(pads) // 2
    return [pads[axis + end * rank] for axis in reversed(range(rank)) for end in (0, 1)]


class Conv(nn.Module):
    """Weight (out, in / groups, *kernel), bias (out,) or None; `pads` as in ONNX: begins, then ends."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: tuple[int, ...],
        pads: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        auto_pad: str = "NOTSET",
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.stride = stride
        self.pads = pads
        self.dilation = dilation
        self.groups = groups
        self.auto_pad = auto_pad

    @property
    def rank(self) -> int:
        return len(self.stride)

    def forward(self, x: Tensor) -> Tensor:
        weight, rank = self.weight, self.rank
        pads = self.pads
        if self.auto_pad.startswith("SAME"):
            upper = self.auto_pad == "SAME_UPPER"
            pads = same_pads(x.shape[2:], weight.shape[2:], self.stride, self.dilation, upper=upper)
        padding = pads[:rank]
        if padding != pads[rank:]:
            x, padding = F.pad(x, torch_pads(pads)), (0,) * rank
        return CONVOLUTIONS[rank](x, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, stride={self.stride}, pads={self.pads}, groups={self.groups}"


class ConvTranspose(nn.Module):
    """Weight (in, out / groups, *kernel), bias (out,) or None; `pads` crop the output."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: tuple[int, ...],
        pads: tuple[int, ...],
        dilation: tuple[int, ...],
        output_padding: tuple[int, ...],
        groups: int = 1,
        auto_pad: str = "NOTSET",
        output_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.stride = stride
        self.pads = pads
        self.dilation = dilation
        self.output_padding = output_padding
        self.groups = groups
        self.auto_pad = auto_pad
        self.output_shape = output_shape

    @property
    def rank(self) -> int:
        return len(self.stride)

    def forward(self, x: Tensor) -> Tensor:
        rank, weight = self.rank, self.weight
        begins, ends = self._crop(x, weight.shape[2:])
        extra = [output - end + begin for output, end, begin in zip(self.output_padding, ends, begins, strict=True)]
        if all(0 <= padding < max(s, d) for padding, s, d in zip(extra, self.stride, self.dilation, strict=True)):
            return TRANSPOSED[rank](x, weight, self.bias, self.stride, begins, extra, self.groups, self.dilation)
        full = TRANSPOSED[rank](x, weight, None, self.stride, 0, 0, self.groups, self.dilation)
        crop = [output - end for output, end in zip(self.output_padding, ends, strict=True)]
        cropped = F.pad(full, torch_pads([*(-begin for begin in begins), *crop]))
        return cropped if self.bias is None else cropped + self.bias.reshape(-1, *[1] * rank)

    def _crop(self, x: Tensor, kernel: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        rank = self.rank
        if not self.output_shape and not self.auto_pad.startswith("SAME"):
            return self.pads[:rank], self.pads[rank:]
        wanted = self.output_shape or tuple(size * s for size, s in zip(x.shape[2:], self.stride, strict=True))
        totals = [
            step * (size - 1) + output + (width - 1) * spread + 1 - target
            for step, size, output, width, spread, target in zip(
                self.stride, x.shape[2:], self.output_padding, kernel, self.dilation, wanted, strict=True
            )
        ]
        small, large = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """A convolution whose weight is computed by the graph."""
    window = _window(weight.dim() - 2, strides, pads, dilations)
    return Conv(weight, bias, **window, groups=group, auto_pad=auto_pad)(x)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """A transposed convolution whose weight is computed by the graph."""
    rank = weight.dim() - 2
    module = ConvTranspose(
        weight,
        bias,
        **_window(rank, strides, pads, dilations),
        output_padding=tuple(output_padding or (0,) * rank),
        output_shape=tuple(output_shape or ())[-rank:],
        groups=group,
        auto_pad=auto_pad,
    )
    return module(x)


def _window(rank: int, strides: Ints | None, pads: Ints | None, dilations: Ints | None) -> dict[str, Any]:
    return {
        "stride": tuple(strides or (1,) * rank),
        "pads": tuple(pads or (0,) * (2 * rank)),
        "dilation": tuple(dilations or (1,) * rank),
    }


def spatial_attributes(node: OnnxNode, rank: int) -> dict[str, Any]:
    """Stride, pads, dilation and auto_pad of a node, defaults filled in, lengths checked."""
    spatial = {
        "stride": node.attribute("strides", (1,) * rank),
        "pads": node.attribute("pads", (0,) * (2 * rank)),
        "dilation": node.attribute("dilations", (1,) * rank),
    }
    if len(spatial["pads"]) != 2 * rank or {len(spatial["stride"]), len(spatial["dilation"])} != {rank}:
        raise node.invalid(f"strides, pads and dilations do not fit a kernel of {rank} dimensions")
    auto_pad = node.attribute("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise node.invalid("auto_pad is none of NOTSET, VALID, SAME_UPPER and SAME_LOWER")
    if auto_pad == "VALID":
        spatial["pads"], auto_pad = (0,) * (2 * rank), "NOTSET"
    return {**spatial, "auto_pad": auto_pad}


def _weight(node: OnnxNode) -> Tensor:
    weight = node.weight(1)
    if not 3 <= weight.dim() <= 5:
        raise node.refuse(f"its weight has {weight.dim()} dimensions; kernels of 1, 2 and 3 dimensions are supported")
    kernel = node.attribute("kernel_shape", tuple(weight.shape[2:]))
    if tuple(kernel) != tuple(weight.shape[2:]):
        raise node.invalid(f"kernel_shape {list(kernel)} is not that of its weight {list(weight.shape)}")
    return weight


@register
class ConvOp(LayerOp):
    name = "Conv"
    modules = (Conv,)
    functions = (conv,)
    weight_inputs = (1, 2)
    ignored = frozenset({"kernel_shape"})
    weights: ClassVar[dict[str, int]] = {"weight": 0}
    quantization = Quantization(inputs=(0, 1), weights={"weight": 0}, bias="bias")

    def read_layer(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        weight, bias = _weight(node), node.optional_weight(2)
        module = Conv(
            graph.parameter(weight),
            None if bias is None else graph.parameter(bias),
            groups=node.attribute("group", 1),
            **spatial_attributes(node, weight.dim() - 2),
        )
        return graph.module(node.layer(1), module, node.input(0))

    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        conv = leaf_of(node, Conv)
        same = conv.auto_pad != "NOTSET"
        onnx.emit(
            node,
            "Conv",
            [node.args[0], onnx.weight(node, "weight"), onnx.weight(node, "bias")],
            kernel_shape=tuple(conv.weight.shape[2:]),
            strides=conv.stride,
            dilations=conv.dilation,
            group=conv.groups,
            **({"auto_pad": conv.auto_pad} if same else {"pads": conv.pads}),
        )

    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        """Weight (groups × out, in): units go along the groups, or along the channels that each group has."""
        conv, given = leaf_of(node, Conv), axes.of(source_of(node))
        out, taken = axes.weight(node, "weight", ["makes", "takes", *[None] * conv.rank])[:2]
        if conv.groups == 1:
            axes.same(given[1], taken)
        else:
            groups, channels = axes.factors(given[1], [conv.groups, taken.size])
            axes.same(channels, taken)
            axes.same(groups, axes.factors(out, [conv.groups, out.size // conv.groups])[0])
            axes.counted_by(node, "groups", groups)
        axes.vector(node, "bias", out, "makes")
        _give_channels(node, axes, out)

    def macs(self, node: fx.Node) -> int:
        return math.prod(node.meta["shape"]) * math.prod(_weight_shape(node)[1:])


@register
class ConvTransposeOp(LayerOp):
    name = "ConvTranspose"
    modules = (ConvTranspose,)
    functions = (conv_transpose,)
    weight_inputs = (1, 2)
    ignored = frozenset({"kernel_shape"})
    weights: ClassVar[dict[str, int]] = {"weight": 1}

    def read_layer(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        weight, bias = _weight(node), node.optional_weight(2)
        rank = weight.dim() - 2
        module = ConvTranspose(
            graph.parameter(weight),
            None if bias is None else graph.parameter(bias),
            groups=node.attribute("group", 1),
            output_padding=node.attribute("output_padding", (0,) * rank),
            output_shape=node.attribute("output_shape", ())[-rank:],
            **spatial_attributes(node, rank),
        )
        return graph.module(node.layer(1), module, node.input(0))

    def write_layer(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        conv = leaf_of(node, ConvTranspose)
        where: dict[str, Any] = {"pads": conv.pads}
        if conv.output_shape:
            where = {"output_shape": conv.output_shape, "auto_pad": conv.auto_pad}
        elif conv.auto_pad != "NOTSET":
            where = {"auto_pad": conv.auto_pad}
        onnx.emit(
            node,
            "ConvTranspose",
            [node.args[0], onnx.weight(node, "weight"), onnx.weight(node, "bias")],
            kernel_shape=tuple(conv.weight.shape[2:]),
            strides=conv.stride,
            dilations=conv.dilation,
            group=conv.groups,
            output_padding=conv.output_padding,
            **where,
        )

    def layer_axes(self, node: fx.Node, axes: Axes) -> None:
        """Weight (groups × in, out)."""
        conv, given = leaf_of(node, ConvTranspose), axes.of(source_of(node))
        taken, out = axes.weight(node, "weight", ["takes", "makes", *[None] * conv.rank])[:2]
        axes.same(given[1], taken)
        if conv.groups > 1:
            groups = axes.factors(taken, [conv.groups, taken.size // conv.groups])[0]
            axes.counted_by(node, "groups", groups)
            out = axes.merged([groups, out])
        axes.vector(node, "bias", out, "makes")
        _give_channels(node, axes, out)

    def macs(self, node: fx.Node) -> int:
        return math.prod(source_of(node).meta["shape"]) * math.prod(_weight_shape(node)[1:])


def _give_channels(node: fx.Node, axes: Axes, out: Dim) -> None:
    """The output of a convolution: its channels, and space that stays."""
    batch, _, *space = axes.of(source_of(node))
    slides = f"the convolution {axes.name(node)} slides along it"
    for dim in space:
        axes.keep(dim, slides)
    shape = axes.shape(node)
    axes.give(node, [batch, out, *(axes.stays(size, slides) for size in shape[2:])])


def _weight_shape(node: fx.Node) -> Sequence[int]:
    shape: Sequence[int] = (
        leaf_of(node, nn.Module).weight.shape if node.op == "call_module" else source_of(node, 1).meta["shape"]  # type: ignore[assignment]
    )
    return shape


@reads_aten("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def read_aten_conv(node: AtenNode, graph: GraphBuilder) -> Value:
    weight, bias = node.weight("weight"), node.optional_weight("bias")
    rank = weight.dim() - 2
    padding = node.get("padding", [0])
    stride, dilation = (node.spatial(name, rank, 1) for name in ("stride", "dilation"))
    if padding == "same":
        totals = [spread * (size - 1) for spread, size in zip(dilation, weight.shape[2:], strict=True)]
        pads = tuple(total // 2 for total in totals) + tuple(total - total // 2 for total in totals)
    else:
        pads = (0,) * (2 * rank) if padding == "valid" else node.spatial("padding", rank, 0) * 2
    module = Conv(
        graph.parameter(weight),
        None if bias is None else graph.parameter(bias),
        stride=stride,
        pads=pads,
        dilation=dilation,
        groups=node.get("groups", 1),
    )
    return graph.module(node.layer("weight"), module, node.value("input"))


@reads_aten("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def read_aten_conv_transpose(node: AtenNode, graph: GraphBuilder) -> Value:
    weight, bias = node.weight("weight"), node.optional_weight("bias")
    rank = weight.dim() - 2
    module = ConvTranspose(
        graph.parameter(weight),
        None if bias is None else graph.parameter(bias),
        stride=node.spatial("stride", rank, 1),
        pads=node.spatial("padding", rank, 0) * 2,
        dilation=node.spatial("dilation", rank, 1),
        output_padding=node.spatial("output_padding", rank, 0),
        groups=node.get("groups", 1),
    )
    return graph.module(node.layer("weight"), module, node.value("input"))
