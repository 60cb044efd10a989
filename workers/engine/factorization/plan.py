"""The splits that a step's target asks for, of those that turn out to be faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from modelpress.models import ModelStats
from modelpress.steps.low_rank_factorization import MOST, LowRankFactorization
from workers.engine.context import Context
from workers.engine.factorization.choosing import Choice, by_energy, cheapest_within
from workers.engine.factorization.splits import EmbeddingSplit, Ranks, Split
from workers.engine.factorization.timing import FASTER, Stopwatch
from workers.engine.quantization.simulation import Simulation


class Plan:
    """`simulation`: by which errors are measured; without, every layer counts alike. `whole`: of the graph."""

    def __init__(
        self,
        step: LowRankFactorization,
        splits: Sequence[Split],
        context: Context,
        stopwatch: Stopwatch,
        simulation: Simulation | None,
        whole: ModelStats,
    ) -> None:
        self.step, self.splits, self.context = step, splits, context
        self._stopwatch, self._simulation, self._whole = stopwatch, simulation, whole
        self._leaves: dict[tuple[Split, Ranks], list[nn.Module]] = {}
        self._known: dict[tuple[Split, Ranks], float] = {}

    def leaves(self, split: Split, ranks: Ranks) -> list[nn.Module]:
        if (split, ranks) not in self._leaves:
            self._leaves[split, ranks] = split.leaves(ranks)
        return self._leaves[split, ranks]

    def ratio(self, split: Split, ranks: Ranks) -> float | None:
        """How many times as fast the layer is in parts; None where that is not asked for."""
        if not self.step.measure or isinstance(split, EmbeddingSplit):
            return None
        return self._stopwatch.ratio(split.layer, self.leaves(split, ranks))

    def error(self, choice: Choice) -> float | None:
        """The outputs' relative error with these layers split; None where nothing tells."""
        if self._simulation is None:
            return None
        return self._simulation.error_of_leaves(
            {split.layer.node: _Chain(self.leaves(split, ranks)) for split, ranks in choice.items()}
        )

    def chosen(self) -> Choice:
        """Again without the splits that are no faster, until all are; why the other layers stay whole is told."""
        choose = self._chooser()
        while True:
            choice = choose()
            slow = {split: ranks for split, ranks in choice.items() if not self._is_faster(split, ranks)}
            if not slow:
                break
            for split, ranks in slow.items():
                split.options = [other for other in split.options if other.macs < ranks.macs]
        for split in self.splits:
            if split not in choice and split.layer.name not in self.context.untouched:
                self.context.untouched[split.layer.name] = self._why_whole(split)
        return choice

    def _is_faster(self, split: Split, ranks: Ranks) -> bool:
        name, ratio = split.layer.name, self.ratio(split, ranks)
        self.context.progress(0.6, f"time of {name}")
        if ratio is None or ratio >= FASTER:
            self.context.untouched.pop(name, None)
            return True
        self.context.untouched[name] = (
            f"with {ranks}, which leaves {ranks.macs / split.macs:.0%} of its multiply-accumulates, it is no faster: "
            f"{ratio:.2f} times as fast"
        )
        return False

    def _why_whole(self, split: Split) -> str:
        least = min(ranks.lost for ranks in split.options)
        if self._by_energy:
            return f"in parts, it would lose {least:.1%} of its energy at least, more than {1 - self._energy:.2%}"
        return f"in parts, it would lose {least:.1%} of its energy at least, too much for what that would save"

    @property
    def _by_energy(self) -> bool:
        step = self.step
        return step.macs_left is None and step.parameters_left is None and step.max_error is None

    @property
    def _energy(self) -> float:
        return self.step.energy or MOST

    def _chooser(self) -> Callable[[], Choice]:
        step, splits = self.step, self.splits
        if self._by_energy:
            return lambda: by_energy(splits, self._energy)
        weights = self._weights()
        if step.max_error is not None:
            bound = step.max_error
            return lambda: cheapest_within(
                splits,
                weights,
                lambda ranks, split: split.cost(ranks),
                lambda choice: (self.error(choice) or 0.0) <= bound,
                rising=False,
            )
        name, share = ("macs", step.macs_left) if step.macs_left is not None else ("parameters", step.parameters_left)
        total = getattr(self._whole, name)

        def cost(ranks: Ranks | None, split: Split) -> int:
            return int(getattr(split if ranks is None else ranks, name))

        def fits(choice: Choice) -> bool:
            saved = sum(cost(None, split) - cost(ranks, split) for split, ranks in choice.items())
            return total - saved <= (share or 1.0) * total

        return lambda: cheapest_within(splits, weights, cost, fits, rising=True)

    def _weights(self) -> dict[Split, float]:
        """How much the outputs' squared error grows with what a layer loses of its energy."""
        if self._simulation is None:
            return dict.fromkeys(self.splits, 1.0)
        weights = {}
        for index, split in enumerate(self.splits):
            self.context.progress(0.5 + 0.1 * index / len(self.splits), f"effect of {split.layer.name}")
            middle = min(split.options, key=lambda ranks: abs(split.cost(ranks) - split.cost(None) / 2))
            weights[split] = (self.error({split: middle}) or 0.0) ** 2 / max(middle.lost, 1e-6)
        return weights


class _Chain(nn.Module):
    """Parts in the place of a layer; the last one takes its other arguments."""

    def __init__(self, leaves: Sequence[nn.Module]) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(leaves)

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor:
        *first, last = self.leaves
        for leaf in first:
            x = leaf(x)
        result: Tensor = last(x, *others)
        return result
