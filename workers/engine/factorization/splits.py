"""What a layer can be split into: ranks, what each costs and loses, and the leaves themselves."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from workers.engine.factorization.moments import Moments, Seen
from workers.engine.factorization.spectra import Spectrum, principal, spectrum, two_modes
from workers.engine.graph import Layer
from workers.engine.ops.base import source_of
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.ops.indexing import Embedding
from workers.engine.ops.linear import Linear, Projection
from workers.engine.ops.recurrent_cells import Recurrent

LESS = 0.9
"""A split that leaves more than this share of the layer's cost is not worth another call."""


@dataclass(frozen=True)
class Ranks:
    """How far a layer is cut: on the side of its inputs and of its outputs (None: not)."""

    into: int | None
    out: int | None
    macs: int
    parameters: int
    lost: float
    """Share of the layer's energy."""

    def __str__(self) -> str:
        sides = [f"{rank} {side}" for rank, side in ((self.into, "in"), (self.out, "out")) if rank]
        return f"rank {self.into or self.out}" if len(sides) == 1 else f"ranks {' and '.join(sides)}"


class Split(ABC):
    """One layer and all that it can be split into. Shapes are those of one example, in `meta["shape"]`."""

    costs: ClassVar[str] = "macs"
    """What has to fall: of a table that is only looked up, it is the parameters."""

    def __init__(self, layer: Layer, seen: Seen) -> None:
        self.layer = layer
        self.mean = None if seen.given is None else seen.given.mean
        self.macs = layer.op.macs(layer.node)
        self.parameters = self.weight.numel()
        self.options: list[Ranks] = []

    @property
    def weight(self) -> Tensor:
        leaf: Any = self.layer.module
        weight: Tensor = leaf.weight.detach()
        return weight

    def cost(self, ranks: Ranks | None) -> int:
        return int(getattr(self if ranks is None else ranks, self.costs))

    def find_options(self, round_to: int) -> None:
        """Fill in those that cost less by enough to be worth it."""
        most = LESS * self.cost(None)
        self.options = [ranks for ranks in self._all(round_to) if self.cost(ranks) <= most]

    @abstractmethod
    def _all(self, round_to: int) -> Iterator[Ranks]: ...

    @abstractmethod
    def leaves(self, ranks: Ranks) -> list[nn.Module]:
        """In the order of execution; the last one has the layer's bias, and its other arguments."""

    def _moment(self, moments: Moments | None, *, centred: bool) -> Tensor | None:
        return None if moments is None else moments.matrix(centred=centred)

    def _parameter(self, tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.to(self.weight.dtype).contiguous(), requires_grad=False)


def multiples(most: int, round_to: int) -> range:
    """Ranks to choose from, below what would be no cut."""
    return range(round_to, most, round_to)


class LinearSplit(Split):
    def __init__(self, layer: Layer, seen: Seen) -> None:
        super().__init__(layer, seen)
        leaf: Any = layer.module
        self.bias: Tensor | None = leaf.bias
        self.places = self.macs // self.parameters
        self._spectrum = spectrum(self.matrix, self._moment(seen.given, centred=self.bias is not None))

    @property
    def matrix(self) -> Tensor:
        return self.weight.double()

    def _all(self, round_to: int) -> Iterator[Ranks]:
        width = sum(self.matrix.shape)
        for rank in multiples(len(self._spectrum.right), round_to):
            parameters = rank * width
            yield Ranks(rank, None, self.places * parameters, parameters, float(self._spectrum.lost[rank]))

    def leaves(self, ranks: Ranks) -> list[nn.Module]:
        left, right = self._spectrum.cut(ranks.into or 0)
        bias = None
        if self.bias is not None:
            moved = 0.0 if self.mean is None else (self.matrix - left @ right) @ self.mean
            bias = self._parameter(self.bias.detach().double() + moved)
        kind = Projection if isinstance(self.layer.module, Projection) else Linear
        return [kind(self._parameter(right), None), kind(self._parameter(left), bias)]


class RecurrentSplit(Split):
    """Only the product with the inputs: what comes back from the step before stays in the cell."""

    def __init__(self, layer: Layer, seen: Seen) -> None:
        super().__init__(layer, seen)
        self.cells = math.prod(source_of(layer.node).meta["shape"][:2])
        leaf: Any = layer.module
        self.bias: Tensor | None = leaf.bias
        self._spectrum = spectrum(self.matrix, self._moment(seen.given, centred=self.bias is not None))

    @property
    def weight(self) -> Tensor:
        leaf: Any = self.layer.module
        weight: Tensor = leaf.weight_ih.detach()
        return weight

    @property
    def matrix(self) -> Tensor:
        """The rows of all gates and directions."""
        return self.weight.double().flatten(0, 1)

    def _all(self, round_to: int) -> Iterator[Ranks]:
        kept = self.macs - self.cells * self.parameters
        for rank in multiples(len(self._spectrum.right), round_to):
            parameters = rank * sum(self.matrix.shape)
            lost = float(self._spectrum.lost[rank])
            yield Ranks(rank, None, kept + self.cells * parameters, parameters, lost)

    def leaves(self, ranks: Ranks) -> list[nn.Module]:
        left, right = self._spectrum.cut(ranks.into or 0)
        cell: Any = copy.deepcopy(self.layer.module)
        cell.weight_ih = self._parameter(left.unflatten(0, self.weight.shape[:2]))
        if self.bias is not None and self.mean is not None:
            moved = ((self.matrix - left @ right) @ self.mean).view(self.weight.shape[:2])
            cell.bias = self._parameter(
                self.bias.detach().double() + torch.nn.functional.pad(moved, (0, moved.shape[1]))
            )
        return [Projection(self._parameter(right), None), cell]


class EmbeddingSplit(Split):
    costs = "parameters"

    def __init__(self, layer: Layer, seen: Seen) -> None:
        super().__init__(layer, seen)
        self.lookups = math.prod(layer.node.meta["shape"][:-1])
        self._spectrum = spectrum(self.weight.double())

    def _all(self, round_to: int) -> Iterator[Ranks]:
        rows, width = self.weight.shape
        for rank in multiples(len(self._spectrum.right), round_to):
            lost = float(self._spectrum.lost[rank])
            yield Ranks(rank, None, self.lookups * rank * width, rank * (rows + width), lost)

    def leaves(self, ranks: Ranks) -> list[nn.Module]:
        left, right = self._spectrum.cut(ranks.into or 0)
        return [Embedding(self._parameter(left)), Projection(self._parameter(right.T), None)]


class ConvSplit(Split):
    """Tucker-2: a 1 × 1 convolution to fewer channels, the kernel on those, and a 1 × 1 convolution back to all.

    Of a kernel of one place only two are left: both products are one matrix. Kim et al., 2016, arXiv:1511.06530.
    """

    def __init__(self, layer: Layer, seen: Seen) -> None:
        super().__init__(layer, seen)
        module: Any = layer.module
        self.conv: Conv | ConvTranspose = module
        self.bias: Tensor | None = module.bias
        self.out, self.into, self.size = self.kernel.shape
        self.before = math.prod(source_of(layer.node).meta["shape"]) // self.into
        self.after = math.prod(layer.node.meta["shape"]) // self.out
        self.core = self.before if isinstance(module, ConvTranspose) else self.after
        unfolded = self.kernel.movedim(1, 2).flatten(0, 1)
        self._given: Spectrum = spectrum(unfolded, self._moment(seen.given, centred=self.bias is not None))
        made = self._moment(seen.made, centred=self.bias is not None)
        flat = self.kernel.flatten(1)
        self._made, self._made_lost = principal(flat @ flat.T if made is None else made)

    @property
    def kernel(self) -> Tensor:
        """(out, in, places)"""
        weight = self.weight.double().flatten(2)
        return weight.transpose(0, 1) if isinstance(self.conv, ConvTranspose) else weight

    def _all(self, round_to: int) -> Iterator[Ranks]:
        ranks_in: list[int | None] = [None, *multiples(len(self._given.right), round_to)]
        ranks_out: list[int | None] = [None, *multiples(self.out, round_to)] if self.size > 1 else [None]
        lost_in, lost_out = self._given.lost.tolist(), self._made_lost.tolist()
        entering = self.after if self.size == 1 and isinstance(self.conv, Conv) else self.before
        for into in ranks_in:
            for out in ranks_out:
                if into is None and out is None:
                    continue
                first = self.into * into if into else 0
                core = (into or self.into) * (out or self.out) * self.size
                last = self.out * out if out else 0
                lost = (lost_in[into] if into else 0.0) + (lost_out[out] if out else 0.0)
                macs = entering * first + self.core * core + self.after * last
                yield Ranks(into, out, macs, first + core + last, min(lost, 1.0))

    def leaves(self, ranks: Ranks) -> list[nn.Module]:
        out, core, into = self._factors(ranks)
        bias = None
        if self.bias is not None:
            bias = self.bias.detach().double()
            if self.mean is not None:
                whole = torch.einsum("po,prk,ri->oik", *_filled(out, core, into))
                bias = bias + (self.kernel - whole).sum(2) @ self.mean
        spread = None if bias is None else self._parameter(bias)
        if self.size == 1 and isinstance(self.conv, Conv) and into is not None:
            # the window goes to the first, so that both compute as few places as the layer did
            return [self._like(into[:, :, None], None), self._plain(core[:, :, 0], spread)]
        leaves = [] if into is None else [self._plain(into, None)]
        leaves.append(self._like(core, spread if out is None else None))
        return leaves if out is None else [*leaves, self._plain(out.T, spread)]

    def _factors(self, ranks: Ranks) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(rank, out), (rank or out, rank or in, places) and (rank, in)."""
        if ranks.into and ranks.out and self.mean is None:
            return two_modes(self.kernel, ranks.into, ranks.out)
        into, core = None, self.kernel
        if ranks.into:
            left, into = self._given.cut(ranks.into)
            core = left.unflatten(0, (self.out, self.size)).movedim(1, 2)
        if not ranks.out:
            return None, core, into
        out = self._made[:, : ranks.out].T
        return out, torch.einsum("oik,po->pik", core, out), into

    def _like(self, kernel: Tensor, bias: nn.Parameter | None) -> nn.Module:
        """The layer's own window with another kernel (out, in, places)."""
        leaf = copy.copy(self.conv)
        leaf._parameters = dict(self.conv._parameters)  # noqa: SLF001 (the copy's own record)
        if isinstance(self.conv, ConvTranspose):
            kernel = kernel.transpose(0, 1)
        leaf.weight = self._parameter(kernel.unflatten(2, self.weight.shape[2:]))
        leaf.bias = bias
        return leaf

    def _plain(self, matrix: Tensor, bias: nn.Parameter | None) -> nn.Module:
        """A convolution of one place, (out, in)."""
        rank = self.conv.rank
        weight = self._parameter(matrix.reshape(*matrix.shape, *[1] * rank))
        return Conv(weight, bias, stride=(1,) * rank, pads=(0,) * (2 * rank), dilation=(1,) * rank)


def _filled(out: Tensor | None, core: Tensor, into: Tensor | None) -> Sequence[Tensor]:
    """With identities where a side is not cut."""
    eye = [torch.eye(size, dtype=core.dtype, device=core.device) for size in core.shape[:2]]
    return (eye[0] if out is None else out, core, eye[1] if into is None else into)


KINDS: dict[type[nn.Module], type[Split]] = {
    Linear: LinearSplit,
    Conv: ConvSplit,
    ConvTranspose: ConvSplit,
    Recurrent: RecurrentSplit,
    Embedding: EmbeddingSplit,
}


def kind_of(leaf: nn.Module) -> type[Split] | None:
    return next((KINDS[cls] for cls in type(leaf).__mro__ if cls in KINDS), None)
