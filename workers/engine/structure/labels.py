"""Which elements of tensor dimensions must go together: labels in a union-find, and dimensions that are products.

A dimension is an array of labels, one an element. Two dimensions that must shrink alike have their labels joined;
concatenating and slicing dimensions is concatenating and slicing arrays. A reshaped dimension is a product: an element
stays where its place in every factor stays. Only one factor of a product can give units; the others are kept whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Dim = NDArray[np.int64]
"""Labels of a dimension's elements; negative ones belong to elements that stay, each number to one reason."""

HEADS, PLAIN, WIDTH, COPIES = 1, 0, -1, -2
"""What a product is rather divided along: attention heads first, the width of a head and mere copies last."""

OTHER_FACTOR = "the dimension that it is part of is reshaped, and units are removed along the other part of it"
ONLY = "it is the only element of a dimension"
HEAD_WIDTH = "attention heads are removed whole, their width stays"


@dataclass(frozen=True)
class Resolved:
    """Per label: the root of those that go together, why it stays (-1: it may go), and its preference."""

    roots: Dim
    reasons: Dim
    preferences: Dim
    texts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Product:
    whole: Dim
    factors: tuple[Dim, ...]

    def along(self, place: int, values: Dim) -> Dim:
        """One value an element of the whole, from values of a factor."""
        sizes = [factor.size for factor in self.factors]
        shape = [size if index == place else 1 for index, size in enumerate(sizes)]
        return np.broadcast_to(values.reshape(shape), sizes).reshape(-1)

    def columns(self, place: int, values: Dim) -> Dim:
        """Values of the whole as (others, elements of the factor)."""
        grid = values.reshape([factor.size for factor in self.factors])
        return np.moveaxis(grid, place, -1).reshape(-1, self.factors[place].size)


class Labels:
    def __init__(self) -> None:
        self._count = 0
        self._joined: list[tuple[Dim, Dim]] = []
        self._products: list[_Product] = []
        self._kept: list[tuple[Dim, Dim]] = []
        self._preferred: list[tuple[Dim, int]] = []
        self._texts: dict[str, int] = {}

    def fresh(self, size: int) -> Dim:
        self._count += size
        return np.arange(self._count - size, self._count, dtype=np.int64)

    def stays(self, size: int, reason: str) -> Dim:
        """A dimension whose elements all stay."""
        return np.full(size, -1 - self._text(reason), dtype=np.int64)

    def keep(self, dim: Dim, reason: str) -> None:
        free = dim[dim >= 0]
        self._kept.append((free, np.full(free.size, self._text(reason), dtype=np.int64)))

    def same(self, first: Dim, second: Dim) -> None:
        """Element by element they go together or stay."""
        both = (first >= 0) & (second >= 0) & (first != second)
        self._joined.append((first[both], second[both]))
        for one, other in ((first, second), (second, first)):
            stays = (one < 0) & (other >= 0)
            self._kept.append((other[stays], -1 - one[stays]))

    def prefer(self, dim: Dim, preference: int) -> None:
        self._preferred.append((dim[dim >= 0], preference))

    @staticmethod
    def joined(dims: Sequence[Dim]) -> Dim:
        """Dimensions one after the other."""
        return np.concatenate(dims)

    @staticmethod
    def repeated(dim: Dim, times: int) -> Dim:
        """The dimension several times, one after the other."""
        return np.tile(dim, times)

    def merged(self, factors: Sequence[Dim]) -> Dim:
        """The dimension that is the product of these."""
        parts = tuple(factor for factor in factors if factor.size > 1)
        if len(parts) < 2:
            return parts[0] if parts else factors[0]
        live = [place for place, factor in enumerate(parts) if (factor >= 0).any()]
        if len(live) < 2:
            return _Product(parts[0], parts).along(live[0] if live else 0, parts[live[0] if live else 0])
        whole = self.fresh(int(np.prod([part.size for part in parts])))
        self._products.append(_Product(whole, parts))
        return whole

    def factors(self, whole: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Dimensions of these sizes whose product this one is; one size may be -1, as in a reshape."""
        known = int(np.prod([size for size in sizes if size > 0]))
        sizes = [size if size > 0 else whole.size // known for size in sizes]
        parts = [size for size in sizes if size > 1]
        made = [whole] if len(parts) == 1 else [self._factor(whole, size) for size in parts]
        if len(parts) > 1 and (whole >= 0).any():
            self._products.append(_Product(whole, tuple(made)))
        following = iter(made)
        return [next(following) if size > 1 else self.stays(1, ONLY) for size in sizes]

    def _factor(self, whole: Dim, size: int) -> Dim:
        if (whole >= 0).any():
            return self.fresh(size)
        return np.full(size, whole[0], dtype=np.int64)

    def resolve(self) -> Resolved:
        """Settle every product: as far as it is forced, then by preference and by how many units there are to gain."""
        while True:
            resolved = self._resolved()
            moved = False
            for product in list(self._products):
                moved |= self._settle(product, resolved)
            if moved:
                continue
            if not self._products:
                return resolved
            self._divide(resolved)

    def _text(self, reason: str) -> int:
        return self._texts.setdefault(reason, len(self._texts))

    def _resolved(self) -> Resolved:
        first, second = (
            (np.concatenate([np.empty(0, np.int64), *side]) for side in zip(*self._joined, strict=True))
            if (self._joined)
            else (np.empty(0, np.int64), np.empty(0, np.int64))
        )
        roots = components(self._count, first, second)
        self._joined = [(np.arange(self._count, dtype=np.int64), roots)]
        reasons = np.full(self._count, -1, dtype=np.int64)
        for labels, texts in reversed(self._kept):
            reasons[roots[labels]] = texts
        preferences = np.zeros(self._count, dtype=np.int64)
        for labels, preference in sorted(self._preferred, key=lambda pair: (pair[1] > 0, -pair[1])):
            preferences[roots[labels]] = preference
        return Resolved(roots, reasons[roots], preferences[roots], tuple(self._texts))

    def _settle(self, product: _Product, resolved: Resolved) -> bool:
        """Do what leaves no choice; whether there was something to do."""
        whole = _reasons(product.whole, resolved)
        moved = False
        live = []
        for place, factor in enumerate(product.factors):
            own = _reasons(factor, resolved)
            needed = product.columns(place, whole).max(axis=0)
            newly = (own < 0) & (needed >= 0)
            if newly.any():
                self._kept.append((factor[newly], needed[newly]))
                moved = True
            if (own < 0).any():
                live.append(place)
        if len(live) > 1 or moved:
            return moved
        place = live[0] if live else 0
        factor = product.factors[place]
        if live:
            self.same(product.whole, product.along(place, factor))
        else:
            own = product.along(place, _reasons(factor, resolved))
            free = product.whole >= 0
            self._kept.append((product.whole[free], own[free]))
        self._products.remove(product)
        return True

    def _divide(self, resolved: Resolved) -> None:
        """Choose along which factor products give units, for as many products as have nothing to do with each other."""
        scored = []
        for product in self._products:
            scores = [self._score(product, place, resolved) for place in range(len(product.factors))]
            best = max(range(len(scores)), key=scores.__getitem__)
            scored.append((scores[best], product, best))
        scored.sort(key=lambda entry: entry[0], reverse=True)
        touched = np.zeros(self._count, dtype=bool)
        for score, product, best in scored:
            labels = np.concatenate([product.whole, *product.factors])
            roots = resolved.roots[labels[labels >= 0]]
            if touched[roots].any():
                continue
            touched[roots] = True
            for place, factor in enumerate(product.factors):
                if place != best:
                    self.keep(factor, HEAD_WIDTH if score[0] >= HEADS else OTHER_FACTOR)

    def _score(self, product: _Product, place: int, resolved: Resolved) -> tuple[int, int]:
        """Preference of a factor and the units that there would be along it."""
        factor = product.factors[place]
        free = _reasons(factor, resolved) < 0
        if not free.any():
            return (COPIES - 1, 0)
        preference = int(resolved.preferences[factor[free]].max())
        columns = product.columns(place, _roots(product.whole, resolved))[:, free]
        own = np.broadcast_to(_roots(factor, resolved)[free], columns.shape)
        names, compact = np.unique(np.concatenate([columns.reshape(-1), own.reshape(-1)]), return_inverse=True)
        half = compact.size // 2
        return preference, len(np.unique(components(names.size, compact[:half], compact[half:])))


def components(count: int, first: Dim, second: Dim) -> Dim:
    """The smallest number connected to each of `count` numbers, where `first[i]` and `second[i]` are connected."""
    parent = np.arange(count, dtype=np.int64)
    while True:
        one, other = parent[first], parent[second]
        apart = one != other
        if not apart.any():
            return parent
        first, second = first[apart], second[apart]
        one, other = one[apart], other[apart]
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
        while True:
            above = parent[parent]
            if np.array_equal(above, parent):
                break
            parent = above


def _roots(dim: Dim, resolved: Resolved) -> Dim:
    return np.where(dim >= 0, resolved.roots[np.maximum(dim, 0)], dim)


def _reasons(dim: Dim, resolved: Resolved) -> Dim:
    """Why each element stays; -1 where it may go."""
    return np.where(dim >= 0, resolved.reasons[np.maximum(dim, 0)], -1 - dim)
