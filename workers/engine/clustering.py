"""Weights that share a few values: k-means in one dimension, and the constraint that keeps and trains them."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from workers.engine.constraints import Constraint
from workers.engine.encodings import Codebook, Encoding

ROUNDS = 300
"""Of k-means; it mostly stands still after some tens."""
NODES = 2048
"""Bytes of a file, about, that unfolding indices takes: what saves less is stored as plain numbers."""


def k_means(numbers: Tensor, count: int) -> Tensor:
    """At most `count` values, rising, near to which the numbers lie; float32. The same for the same numbers.

    Begins evenly between the smallest and the largest, which keeps the rare large weights (Han et al., 2016,
    arXiv:1510.00149); a value that no number is nearest to goes to where the numbers spread most.
    """
    ordered = numbers.detach().double().flatten().sort().values
    different = ordered.unique_consecutive()
    if len(different) <= count:
        return different.float()
    sums, squares = (torch.cat([ordered.new_zeros(1), part.cumsum(0)]) for part in (ordered, ordered.square()))
    entries = torch.linspace(float(ordered[0]), float(ordered[-1]), count, dtype=torch.float64, device=ordered.device)
    previous = None
    for _ in range(ROUNDS):
        borders = torch.searchsorted(ordered, (entries[1:] + entries[:-1]) / 2)
        ends = torch.cat([borders.new_zeros(1), borders, borders.new_tensor([len(ordered)])])
        sizes = ends.diff()
        empty = sizes == 0
        means = sums[ends].diff() / sizes.clamp_min(1)
        if not bool(empty.any()) and previous is not None and torch.equal(ends, previous):
            return means.float()
        previous = ends
        errors = (squares[ends].diff() - means.square() * sizes).clamp_min(0)
        entries = _refilled(means, empty, errors, sizes)
    return entries.float()


def _refilled(means: Tensor, empty: Tensor, errors: Tensor, sizes: Tensor) -> Tensor:
    """The means; those of nothing go beside the means of the groups that spread most, one each."""
    widest = errors.argsort(descending=True, stable=True)[: int(empty.sum())]
    beside = means[widest] + (errors[widest] / sizes[widest].clamp_min(1)).sqrt()
    return torch.cat([means[~empty], beside]).sort().values


class Clusters(Constraint):
    """weight → the value that it shares with others. `indices`: uint8, of the weight's shape; `entries`: the values.

    Index 0 is zero, which is no entry and never changes, where `zeros`; else it is the first entry. What the weight
    itself is matters no more: the gradient of an entry is the sum of those of its members.
    """

    indices: Tensor

    def __init__(self, entries: nn.Parameter, indices: Tensor, *, zeros: bool) -> None:
        super().__init__()
        self.entries = entries
        self.zeros = zeros
        self.register_buffer("indices", indices)
        stored = self._stored()
        self.bits = 32.0 if stored is None else stored.bits

    @classmethod
    def fit(cls, weight: Tensor, count: int) -> Self:
        """`count` values, 2 to 256, zero among them where the weight has zeros."""
        weight = weight.detach()
        nonzero = weight != 0
        zeros = not bool(nonzero.all())
        entries = k_means(weight[nonzero], count - zeros).to(weight)
        if not len(entries):
            entries = weight.new_zeros(1)  # of nothing but zeros
        indices = torch.bucketize(weight, (entries[1:] + entries[:-1]) / 2)
        if zeros:
            indices = torch.where(nonzero, indices + 1, 0)
        return cls(nn.Parameter(entries), indices.to(torch.uint8), zeros=zeros)

    def shared(self) -> Self:
        """The same for another layer that uses the same weight: the entries are trained together."""
        return type(self)(self.entries, self.indices.clone(), zeros=self.zeros)

    @property
    def values(self) -> Tensor:
        """What the weights may be, by index."""
        return torch.cat([self.entries.new_zeros(1), self.entries]) if self.zeros else self.entries

    def forward(self, weight: Tensor) -> Tensor:
        flat = self.indices.flatten()
        if not self.zeros:
            return self.entries.index_select(0, flat.int()).view_as(weight)
        places = flat.nonzero().squeeze(1)
        members = self.entries.index_select(0, flat[places].int() - 1)
        return weight.new_zeros(weight.numel()).scatter(0, places, members).view_as(weight)

    def encode(self, weight: Tensor) -> Encoding | None:  # noqa: ARG002 (the indices say all)
        return self._stored()

    def narrow(self, axis: int, index: Tensor) -> None:
        self.indices = self.indices.index_select(axis, index)

    def _stored(self) -> Codebook | None:
        """None where plain numbers take no more."""
        form = Codebook(self.indices, self.values.detach())
        return form if self.indices.numel() * (4 - form.bits / 8) > NODES else None
