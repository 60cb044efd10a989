"""Rounds the weights of a layer one column after the other; those to come make up for the error (Frantar et al., 2022).

arXiv:2210.17323. The columns with the largest inputs come first, on grids that are fitted beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.quantization.block_grid import middle_of

DAMPING = 0.01
"""Share of the mean diagonal that is added to it; ten times as much where that is not enough."""
MOST_DAMPING = 1.0
COLUMNS = 128
"""That are rounded before the rest of the matrix is brought up to date."""


@torch.no_grad()
def rounded(
    weight: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor | None, width: int, keep: Tensor | None = None
) -> Tensor:
    """The weight on its grid, so that its products with the inputs change least.

    `weight` (groups, rows, values) in several independent groups; `hessian` (groups, values, values), the sums of
    x xᵀ of their inputs; `scale` and `zero` for every weight, of its shape; `keep`: false for zeros that stay.
    """
    order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    back = order.argsort(dim=1)
    hessian = hessian.gather(1, order[:, :, None].expand_as(hessian))
    hessian = hessian.gather(2, order[:, None, :].expand_as(hessian))
    factor = _inverse_factor(hessian).float()
    columns = order[:, None, :].expand_as(weight)
    middle = middle_of(zero, width)
    left, scale = weight.float().gather(2, columns), scale.gather(2, columns)
    middle = middle.gather(2, columns) if isinstance(middle, Tensor) else middle
    keep = None if keep is None else keep.gather(2, columns)
    result = torch.empty_like(left)
    for start in range(0, left.shape[2], COLUMNS):
        end = min(start + COLUMNS, left.shape[2])
        part = left[:, :, start:end].clone()
        errors = torch.empty_like(part)
        inner = factor[:, start:end, start:end]
        steps = scale[:, :, start:end]
        zeros = middle[:, :, start:end] if isinstance(middle, Tensor) else None
        for column in range(end - start):
            value, step = part[:, :, column], steps[:, :, column]
            shift = middle if zeros is None else zeros[:, :, column]
            nearest = ((value / step + shift).round_().clamp_(0, 2**width - 1) - shift) * step
            if keep is not None:
                nearest = nearest * keep[:, :, start + column]
            result[:, :, start + column] = nearest
            error = (value - nearest) / inner[:, column, column, None]
            errors[:, :, column] = error
            part[:, :, column:].sub_(error.unsqueeze(2) * inner[:, None, column, column:])
        left[:, :, end:].sub_(errors @ factor[:, start:end, end:])
    return result.gather(2, back[:, None, :].expand_as(result))


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped inverse, (groups, values, values)."""
    hessian = hessian.double()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1)
    damping = DAMPING
    while damping <= MOST_DAMPING:
        damped = hessian + torch.diag_embed((damping * mean).clamp_min(1e-12)[:, None].expand_as(diagonal))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed.any() and bool(upper.isfinite().all()):
                return upper
        damping *= 10
    return torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device).expand_as(hessian)
