"""Ops of image models that move by computed places: deformable convolutions, regions, patches and grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx

from workers.engine.ops.base import register, source_of
from workers.engine.ops.constants import check_size
from workers.engine.ops.plain import Plain, plain
from workers.engine.ops.reductions import as_ints

if TYPE_CHECKING:
    from workers.engine.readers.onnx_node import OnnxNode

Ints = Sequence[int]


def affine_grid(theta: Tensor, size: Ints | Tensor, *, align_corners: int = 0) -> Tensor:
    """`theta` (N, dims, dims + 1) as the places that `GridSample` looks at, (N, *space, dims)."""
    sizes = as_ints(size)
    check_size(sizes)
    return F.affine_grid(theta, sizes, bool(align_corners))


def center_crop_pad(x: Tensor, shape: Ints | Tensor, *, axes: Ints | None = None) -> Tensor:
    """Cut or filled with zeros on both sides; an odd one at the end."""
    sizes = as_ints(shape)
    for axis, size in zip(range(x.dim()) if axes is None else axes, sizes, strict=True):
        spare = size - x.shape[axis]
        before = abs(spare) // 2
        if spare < 0:
            x = x.narrow(axis, before, size)
        elif spare > 0:
            check_size([*x.shape[:axis], size, *x.shape[axis % x.dim() + 1 :]])
            behind = x.dim() - 1 - axis % x.dim()
            x = F.pad(x, [0, 0] * behind + [before, spare - before])
    return x


def col2im(
    x: Tensor,
    image_shape: Ints | Tensor,
    block_shape: Ints | Tensor,
    *,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Blocks (N, channels × block, blocks) added up into an image (N, channels, *image_shape)."""
    image, block = as_ints(image_shape), as_ints(block_shape)
    rank = len(image)
    begins = list(pads or [0] * (2 * rank))
    padded = [size + begins[axis] + begins[axis + rank] for axis, size in enumerate(image)]
    check_size(padded)
    places = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
    for size, width, stride, spread in zip(padded, block, strides or [1] * rank, dilations or [1] * rank, strict=True):
        steps = torch.arange((size - spread * (width - 1) - 1) // stride + 1, device=x.device) * stride
        axis = (torch.arange(width, device=x.device) * spread).unsqueeze(1) + steps
        places = (places[:, None, :, None] * size + axis[None, :, None, :]).flatten(0, 1).flatten(1)
    columns = x.unflatten(1, (-1, math.prod(block))).flatten(2)
    sums = x.new_zeros(*columns.shape[:2], math.prod(padded))
    sums = sums.index_add(2, places.flatten(), columns).unflatten(2, padded)
    return sums[(..., *(slice(begins[axis], begins[axis] + size) for axis, size in enumerate(image)))]


def deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Ints | None = None,
    group: int = 1,
    offset_group: int = 1,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """A convolution of images that reads each tap at a computed offset (arXiv:1703.06211, arXiv:1811.11168).

    `offset` (N, offset groups × taps × 2, *out), `mask` (N, offset groups × taps, *out): what the taps are scaled by.
    """
    batch, channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    out = offset.shape[2:]
    (top, left), (step_y, step_x), (spread_y, spread_x) = (pads or (0, 0))[:2], strides or (1, 1), dilations or (1, 1)
    moved = offset.reshape(batch * offset_group, rows, columns, 2, *out)
    y = torch.arange(out[0], device=x.device)[:, None] * step_y - top
    y = y + (torch.arange(rows, device=x.device) * spread_y)[:, None, None, None] + moved[:, :, :, 0]
    across = torch.arange(out[1], device=x.device) * step_x - left
    across = across + (torch.arange(columns, device=x.device) * spread_x)[:, None, None] + moved[:, :, :, 1]
    places = torch.stack([across / max(width - 1, 1), y / max(height - 1, 1)], -1) * 2 - 1
    images = x.reshape(batch * offset_group, channels // offset_group, height, width)
    taps = F.grid_sample(images, places.flatten(1, 3).to(x.dtype), align_corners=True)
    taps = taps.reshape(*taps.shape[:2], rows * columns, *out)
    if mask is not None:
        taps = taps * mask.reshape(batch * offset_group, 1, rows * columns, *out)
    taps = taps.reshape(batch, group, channels // group, rows * columns, *out)
    kernels = weight.reshape(group, -1, channels // group, rows * columns)
    result = torch.einsum("ngckyx,gock->ngoyx", taps, kernels).flatten(1, 2)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


def roi_align(
    x: Tensor,
    regions: Tensor,
    images: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Regions (R, 4) as x1, y1, x2, y2 of images (R,), each sampled to one size (He et al., arXiv:1703.06870)."""
    check_size([len(regions), x.shape[1], output_height, output_width])
    half = coordinate_transformation_mode == "half_pixel"
    sampled = []
    for region, image in zip(regions.tolist(), images.tolist(), strict=True):
        left, top, right, bottom = (edge * spatial_scale - 0.5 * half for edge in region)
        height, width = bottom - top, right - left
        if not half:
            height, width = max(height, 1.0), max(width, 1.0)
        rows, low_y, high_y, part_y = _points(top, height, output_height, sampling_ratio, x.shape[2], x)
        columns, low_x, high_x, part_x = _points(left, width, output_width, sampling_ratio, x.shape[3], x)
        corners = torch.stack(
            [
                x[image][:, y][:, :, across] * (by_y[:, None] * by_x)
                for y, by_y in ((low_y, part_y[0]), (high_y, part_y[1]))
                for across, by_x in ((low_x, part_x[0]), (high_x, part_x[1]))
            ]
        )
        cells = (
            (corners.sum(0) if mode == "avg" else corners.amax(0)).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
        )
        sampled.append(cells.mean((2, 4)) if mode == "avg" else cells.amax((2, 4)))
    return torch.stack(sampled) if sampled else x.new_zeros(0, x.shape[1], output_height, output_width)


def _points(
    start: float, length: float, cells: int, ratio: int, size: int, x: Tensor
) -> tuple[int, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Points a cell, the pixels before and behind each, and their shares; points outside have none."""
    count = max(ratio or math.ceil(length / cells), 1)
    check_size([cells, count])
    places = start + (torch.arange(cells * count, device=x.device, dtype=torch.float64) + 0.5) * (
        length / cells / count
    )
    inside = ((places >= -1) & (places <= size)).double()
    places = places.clamp(0, size - 1)
    low = places.floor().long()
    behind = (places - low) * inside
    return count, low, (low + 1).clamp(max=size - 1), ((inside - behind).to(x.dtype), behind.to(x.dtype))


@register
class DeformConv(Plain):
    name = "DeformConv"
    functions = (deform_conv,)
    ignored = frozenset({"kernel_shape"})
    opset = 19

    def macs(self, node: fx.Node) -> int:
        return math.prod(node.meta["shape"]) * math.prod(source_of(node, 1).meta["shape"][1:])


@register
class RoiAlign(Plain):
    """Before opset 16 pixels were counted from their corners."""

    name = "RoiAlign"
    functions = (roi_align,)
    attribute_since: ClassVar[dict[str, int]] = {"coordinate_transformation_mode": 16}
    words = frozenset({"avg", "output_half_pixel"})
    opset = 16

    def read_attributes(self, node: OnnxNode, function: Any) -> dict[str, Any]:
        attributes = super().read_attributes(node, function)
        if node.opset < 16:
            attributes["coordinate_transformation_mode"] = "output_half_pixel"
        return attributes


plain("AffineGrid", affine_grid, literals=frozenset({1}), folds=0, opset=20)
plain("CenterCropPad", center_crop_pad, literals=frozenset({1}), folds=0, opset=18)
plain("Col2Im", col2im, literals=frozenset({1, 2}), folds=0, opset=18)
