"""Which of all possible splits are taken: by what each layer may lose, or the cheapest for the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from workers.engine.factorization.splits import Ranks, Split

Choice = dict[Split, Ranks]
"""Layers that stay whole are not in it."""

HALVINGS = 24
RANGE = 1e9
"""Prices are looked for between this many times less and more than what makes losing a whole layer worth its cost."""


def by_energy(splits: Sequence[Split], energy: float) -> Choice:
    """The cheapest of those that keep this share of the layer's energy."""
    choice = {}
    for split in splits:
        fitting = [ranks for ranks in split.options if ranks.lost <= 1 - energy]
        if fitting:
            choice[split] = min(fitting, key=lambda ranks: (split.cost(ranks), ranks.lost))
    return choice


def by_price(
    splits: Sequence[Split], weights: Mapping[Split, float], price: Callable[[Ranks | None, Split], float]
) -> Choice:
    """The splits for which what is lost, weighted, and the price of what is left come to the least."""
    choice = {}
    for split in splits:
        best = min(split.options, key=lambda ranks: weights[split] * ranks.lost + price(ranks, split), default=None)
        if best is not None and weights[split] * best.lost + price(best, split) < price(None, split):
            choice[split] = best
    return choice


def cheapest_within(
    splits: Sequence[Split],
    weights: Mapping[Split, float],
    cost: Callable[[Ranks | None, Split], int],
    fits: Callable[[Choice], bool],
    *,
    rising: bool,
) -> Choice:
    """The choice at the price where `fits` changes: the first one that fits, else the last one there is.

    All layers pay the same price for a unit of cost, which is the least loss in sum for what is saved (Lagrange).
    `rising`: whether it fits from some price on (a target of cost), or up to some price (a bound on the error).
    """
    total = max(1, sum(cost(None, split) for split in splits))
    unit = sum(weights.values()) / total

    def at(power: float) -> Choice:
        factor = unit * RANGE**power
        return by_price(splits, weights, lambda ranks, split: factor * cost(ranks, split))

    low, high = -1.0, 1.0
    found = at(high) if rising else at(low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        choice = at(middle)
        good = fits(choice)
        if good:
            found = choice
        if good == rising:
            high = middle
        else:
            low = middle
    return found
