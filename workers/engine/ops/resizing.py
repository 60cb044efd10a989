"""Resizing and sampling of images and signals, axis by axis, in all of ONNX's ways of counting pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx

from workers.engine.ops.aten import reads_aten
from workers.engine.ops.axis_rules import windowed
from workers.engine.ops.base import Op, register, source_of
from workers.engine.ops.plain import Plain, as_literal, attributes_of
from workers.engine.ops.reductions import as_ints
from workers.engine.ops.shapes import concat
from workers.engine.ops.shapes import shape as shape_of

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder

Floats = Sequence[float] | Tensor
Ints = Sequence[int] | Tensor


def resize(
    x: Tensor,
    roi: Floats | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    dims = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    factors, targets = _targets(x, dims, scales, sizes, keep_aspect_ratio_policy)
    regions = [] if roi is None else [float(v) for v in (roi.tolist() if isinstance(roi, Tensor) else roi)]
    for index, (dim, factor, target) in enumerate(zip(dims, factors, targets, strict=True)):
        crop = coordinate_transformation_mode == "tf_crop_and_resize"
        if factor == 1 and target == x.shape[dim] and not crop:
            continue
        region = (regions[index], regions[index + len(dims)]) if crop else (0.0, 1.0)
        places = _places(x.shape[dim], target, factor, coordinate_transformation_mode, region, x.device)
        outside = (places < 0) | (places > x.shape[dim] - 1) if crop else None
        if mode == "nearest":
            x = x.index_select(dim, _nearest(places, nearest_mode).clamp(0, x.shape[dim] - 1))
        else:
            squeeze = min(factor, 1.0) if antialias else 1.0
            x = _blend(x, dim, places, mode, squeeze, cubic_coeff_a, bool(exclude_outside))
        if outside is not None:
            shape = [-1 if axis == dim else 1 for axis in range(x.dim())]
            x = torch.where(outside.reshape(shape), x.new_tensor(extrapolation_value), x)
    return x


def _times(size: int, factor: float) -> int:
    return size * int(factor) if factor.is_integer() else math.floor(size * factor)


def _targets(
    x: Tensor, dims: list[int], scales: Floats | None, sizes: Ints | None, policy: str
) -> tuple[list[float], list[int]]:
    if sizes is None:
        factors = [float(scale) for scale in (scales.tolist() if isinstance(scales, Tensor) else scales or ())]
        kept = zip(dims, factors, strict=True)  # a whole factor keeps the size of a trace symbolic
        return factors, [_times(x.shape[dim], factor) for dim, factor in kept]
    targets = as_ints(sizes)
    factors = [target / x.shape[dim] for dim, target in zip(dims, targets, strict=True)]
    if policy != "stretch":
        one = min(factors) if policy == "not_larger" else max(factors)
        return [one] * len(dims), [math.floor(one * x.shape[dim] + 0.5) for dim in dims]
    return factors, targets


def _places(
    length: int, target: int, scale: float, mode: str, region: tuple[float, float], device: torch.device
) -> Tensor:
    """Where in the source each output lies, in pixels, float32 as ONNX Runtime counts."""
    out = torch.arange(target, dtype=torch.float32, device=device)
    if mode == "align_corners":
        return out * (length - 1) / (target - 1) if target > 1 else out * 0
    if mode == "asymmetric":
        return out / scale
    if mode == "pytorch_half_pixel":
        return (out + 0.5) / scale - 0.5 if target > 1 else out * 0
    if mode == "half_pixel_symmetric":
        shift = length / 2 * (1 - target / (scale * length))
        return shift + (out + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        start, end = region
        if target > 1:
            return start * (length - 1) + out * (end - start) * (length - 1) / (target - 1)
        return out * 0 + 0.5 * (start + end) * (length - 1)
    return (out + 0.5) / scale - 0.5


def _nearest(places: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return places.floor().long()
    if mode == "ceil":
        return places.ceil().long()
    if mode == "round_prefer_ceil":
        return (places + 0.5).floor().long()
    return (places - 0.5).ceil().long()


def _blend(x: Tensor, dim: int, places: Tensor, mode: str, squeeze: float, a: float, exclude: bool) -> Tensor:
    """Weighted sums of neighbours; `squeeze` < 1 widens the kernel against aliasing."""
    reach = 2 if mode == "cubic" else 1
    start, length = math.floor(-reach / squeeze) + 1, x.shape[dim]
    base = places.floor()
    offsets = (
        torch.arange(start, 2 - start, device=x.device)
        if squeeze < 1
        else torch.arange(1 - reach, reach + 1, device=x.device)
    )
    distances = ((offsets - (places - base).unsqueeze(1)) * squeeze).abs()
    weights = _cubic(distances, a) if mode == "cubic" else (1 - distances).clamp(min=0)
    neighbours = base.long().unsqueeze(1) + offsets
    if exclude:
        weights = weights * ((neighbours >= 0) & (neighbours < length))
    if exclude or squeeze < 1:
        weights = weights / weights.sum(1, keepdim=True)
    neighbours = neighbours.clamp(0, length - 1)
    shape = [-1 if axis == dim else 1 for axis in range(x.dim())]
    value = x if x.is_floating_point() else x.float()
    taps = [
        value.index_select(dim, neighbours[:, tap]) * weights[:, tap].to(value.dtype).reshape(shape)
        for tap in range(weights.shape[1])
    ]
    return torch.stack(taps).sum(0).to(x.dtype)


def _cubic(t: Tensor, a: float) -> Tensor:
    """Keys' kernel, zero beyond 2 (Keys, 1981)."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def grid_sample(
    x: Tensor, grid: Tensor, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Tensor:
    kind = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, kind, padding_mode, bool(align_corners))


@register
class Resize(Plain):
    name = "Resize"
    functions = (resize,)
    literals = frozenset({1, 2, 3})
    folds = 0
    attribute_since: ClassVar[dict[str, int]] = {"antialias": 18, "axes": 18, "keep_aspect_ratio_policy": 18}

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        attributes = self.read_attributes(node, resize)
        if node.opset < 11:
            attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            return graph.call(resize, node.input(0), None, as_literal(node.input(1)), None, **attributes)
        inputs = [None if value == () else value for value in self.read_inputs(node)]
        if attributes["coordinate_transformation_mode"] != "tf_crop_and_resize":
            inputs[1:2] = [None]
        return graph.call(resize, *inputs, **attributes)

    def axes(self, node: fx.Node, axes: Axes) -> None:
        """Dimensions that keep their size are copied element by element."""
        source, shape = source_of(node), axes.shape(node)
        dims = axes.of(source)
        for axis, dim in enumerate(dims):
            if dim.size != shape[axis] or axes.sizes.is_open(source, axis):
                axes.keep(dim, "it is resized")
                dims[axis] = axes.stays(shape[axis], "it is resized")
        axes.give(node, dims)
        if len(node.args) > 3 and node.args[3] is not None:
            chosen = node.kwargs.get("axes") or range(len(dims))
            axes.sized_by(node, 3, dims, chosen=[int(axis) % len(dims) for axis in chosen])  # type: ignore[union-attr, arg-type]


@register
class Upsample(Op):
    """The older name of Resize; it is written as that."""

    name = "Upsample"

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value:
        scales: Any = node.attribute("scales") if node.opset < 9 else as_literal(node.input(1))
        mode = node.attribute("mode", "nearest")
        if scales is None or mode not in ("nearest", "linear"):
            raise node.refuse("its scales or its mode are not supported")
        return graph.call(
            resize,
            node.input(0),
            None,
            scales,
            None,
            mode=mode,
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )


@register
class GridSample(Plain):
    """Before opset 20 the modes were called bilinear and bicubic."""

    name = "GridSample"
    functions = (grid_sample,)
    axes = windowed
    opset = 16

    def read_attributes(self, node: OnnxNode, function: Any) -> dict[str, Any]:
        attributes = super().read_attributes(node, function)
        return {
            **attributes,
            "mode": {"bilinear": "linear", "bicubic": "cubic"}.get(attributes["mode"], attributes["mode"]),
        }

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        attributes = attributes_of(node)
        if onnx.opset < 20:
            attributes["mode"] = {"linear": "bilinear", "cubic": "bicubic"}.get(
                str(attributes["mode"]), attributes["mode"]
            )
        onnx.emit(node, "GridSample", node.args, **attributes)


@reads_aten(
    "upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec",
    "_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec",
    "upsample_linear1d.vec", "upsample_bilinear2d.vec", "upsample_trilinear3d.vec", "upsample_bicubic2d.vec",
)  # fmt: skip
def read_aten_upsample(node: AtenNode, graph: GraphBuilder) -> Value:
    x, scales, sizes = node.value("input"), node.get("scale_factors"), node.get("output_size")
    if scales:
        targets: tuple[Any, Any] = (1.0, 1.0, *(float(scale) for scale in scales)), None
    else:
        kept = graph.call(shape_of, x, start=0, end=2)
        spatial = node.vector(sizes, graph)
        spatial = graph.keep(torch.tensor(spatial)) if isinstance(spatial, tuple) else spatial
        targets = None, graph.call(concat, kept, spatial, axis=0)
    if "exact" in node.target:
        ways = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}
    elif "nearest" in node.target:
        ways = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        corners = "align_corners" if node.get("align_corners") else "pytorch_half_pixel"
        mode = "cubic" if "cubic" in node.target else "linear"
        ways = {"mode": mode, "coordinate_transformation_mode": corners}
    return graph.call(resize, x, None, *targets, **ways)
