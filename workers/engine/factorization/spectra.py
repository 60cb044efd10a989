"""The best low-rank copies of matrices and kernels, by the energy of what they give.

With the second moment of real inputs, energy is that of the products with them: what inputs never hold costs nothing
to lose (Wang et al., 2024, arXiv:2403.07378). Without, all inputs count alike, which is the plain SVD.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NOISE = 1e-12
"""Of the largest energy: less than this is rounding, and nothing is divided by it."""
RIDGE = 1e-6
"""Of the mean second moment, added to each: what few examples do not show may still come."""
SWEEPS = 3
"""Of the alternating refinement of two modes; the first two bring nearly all of it."""


@dataclass(frozen=True)
class Spectrum:
    """A matrix as `left @ right`, cut anywhere: the first r columns and rows are the best copy of rank r.

    `left` (out, m) has orthonormal columns but for those without energy, `right` (m, in); `lost[r]` is the share of the
    energy that rank r loses.
    """

    left: Tensor
    right: Tensor
    lost: Tensor

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """(out, rank) and (rank, in), with the weights of each component shared out evenly between the two."""
        left, right = self.left[:, :rank], self.right[:rank]
        scale = right.norm(dim=1).clamp_min(1e-30).sqrt()
        return left * scale, right / scale[:, None]


def spectrum(matrix: Tensor, second: Tensor | None = None) -> Spectrum:
    """Of a matrix (out, in), for inputs of this second moment (in, in); both in double precision."""
    weighted = matrix if second is None else matrix @ _root(second)
    tall = matrix.shape[0] > matrix.shape[1]
    energies, vectors = torch.linalg.eigh(weighted.T @ weighted if tall else weighted @ weighted.T)
    energies, vectors = energies.flip(0).clamp_min(0), vectors.flip(1)
    left = weighted @ vectors / energies.clamp_min(NOISE * float(energies[0]) + 1e-300).sqrt() if tall else vectors
    return Spectrum(left, left.T @ matrix, _lost(energies))


def principal(second: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of a second moment (n, n) as columns, most energy first, and what is lost with the first r of them."""
    energies, vectors = torch.linalg.eigh(second)
    return vectors.flip(1), _lost(energies.flip(0).clamp_min(0))


def two_modes(kernel: Tensor, rank_in: int, rank_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """A kernel (out, in, places) as out (rank_out, out), core (rank_out, rank_in, places) and in (rank_in, in).

    Higher-order orthogonal iteration from the singular vectors of both modes; De Lathauwer et al., 2000.
    """
    out = _leading(kernel, 0, rank_out)
    into = _leading(kernel, 1, rank_in)
    for _ in range(SWEEPS):
        out = _leading(torch.einsum("oik,ri->ork", kernel, into), 0, rank_out)
        into = _leading(torch.einsum("oik,ro->rik", kernel, out), 1, rank_in)
    return out, torch.einsum("oik,po,ri->prk", kernel, out, into), into


def _leading(kernel: Tensor, mode: int, rank: int) -> Tensor:
    """The first singular vectors along a mode, as rows (rank, size)."""
    unfolded = kernel.movedim(mode, 0).flatten(1)
    _, vectors = torch.linalg.eigh(unfolded @ unfolded.T)
    return vectors.flip(1)[:, :rank].T


def _root(second: Tensor) -> Tensor:
    """L with L @ L.T the second moment, made positive definite."""
    ridge = RIDGE * second.diagonal().mean().clamp_min(1e-30)
    root, failed = torch.linalg.cholesky_ex(second + ridge * torch.eye(len(second)).to(second))
    if not bool(failed):
        return root
    # of inputs that hardly vary, what is left is rounding, which has negative energies as well
    energies, vectors = torch.linalg.eigh(second)
    return vectors * (energies.clamp_min(0) + ridge).sqrt()


def _lost(energies: Tensor) -> Tensor:
    """(m + 1,): the share of the energy that is not in the first r."""
    total = energies.sum().clamp_min(1e-300)
    return torch.cat((energies.new_ones(1), 1 - energies.cumsum(0) / total)).clamp_min(0)
