"""Ops that choose among the boxes that a detector proposes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.engine.ops.plain import plain


def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    overlap: Tensor | None = None,
    least: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Places (chosen, 3) as example, class and box: the best boxes, none of which covers a better one too much.

    `boxes` (N, boxes, 4) as two corners, or as center and size; `scores` (N, classes, boxes).
    """
    count = 0 if most is None else int(most)
    limit = 0.0 if overlap is None else float(overlap)
    floor = -math.inf if least is None else float(least)
    chosen = []
    for example, corners in enumerate(_corners(boxes, center_point_box)):
        for kind, own in enumerate(scores[example]):
            left = [place for place in own.argsort(descending=True, stable=True).tolist() if own[place] > floor]
            kept: list[int] = []
            while left and len(kept) < count:
                best = left.pop(0)
                kept.append(best)
                shares = _shares(corners[best], corners[left])
                left = [place for place, share in zip(left, shares.tolist(), strict=True) if share <= limit]
            chosen += [(example, kind, place) for place in kept]
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, centered: int) -> Tensor:
    """y1, x1, y2, x2 with the smaller ones first."""
    if centered:
        x, y, width, height = boxes.unbind(-1)
        return torch.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([first.minimum(second), first.maximum(second)], -1)


def _shares(box: Tensor, others: Tensor) -> Tensor:
    """Of the area that two boxes cover, how much both do."""
    inner = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0).prod(-1)
    areas = (others[:, 2:] - others[:, :2]).prod(-1) + (box[2:] - box[:2]).prod()
    return inner / (areas - inner).clamp(min=1e-12)


plain("NonMaxSuppression", non_max_suppression)
