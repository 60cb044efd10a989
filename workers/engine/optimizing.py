"""What the training loop moves, and how fast."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn

from modelpress.steps.training import TrainingStep

WARM_UP = 0.15
"""Share of the schedule in which the learning rate rises."""


class Optimizer:
    """AdamW at one rate for all weights; the parameters of constraints, and of other modules with `rates`, have theirs.

    Those, such as step sizes and scores, are no weights, so that they do not decay.
    """

    def __init__(self, module: nn.Module, beside: Sequence[nn.Parameter], options: TrainingStep) -> None:
        """`beside`: what is trained with the module and thrown away."""
        paces = {
            parameter: rates.get(name, 1.0)
            for part in module.modules()
            if (rates := getattr(part, "rates", None)) is not None
            for name, parameter in part.named_parameters(recurse=False)
        }
        groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        for parameter in trainable(module):
            own = parameter in paces
            groups[paces.get(parameter, 1.0), 0.0 if own else options.weight_decay].append(parameter)
        groups[1.0, options.weight_decay].extend(beside)
        self.rate = 0.0
        """Of the weights, at the latest update."""
        self._peak = options.learning_rate
        self._peaks = [pace * options.learning_rate for pace, _ in groups]
        self.parameters = [parameter for group in groups.values() for parameter in group]
        self.adam = torch.optim.AdamW(
            [{"params": group, "weight_decay": decay} for (_, decay), group in groups.items()],
            lr=options.learning_rate,
            foreach=True,
        )

    def step(self, fraction: float) -> None:
        """One update, at the rate of this point (0 to 1) of the schedule."""
        share = one_cycle(fraction)
        self.rate = share * self._peak
        for group, peak in zip(self.adam.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        self.adam.step()


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.is_floating_point()]


def one_cycle(fraction: float) -> float:
    """The share of the peak learning rate at this point (0 to 1) of the schedule: cosine up, cosine down."""
    if fraction < WARM_UP:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * fraction / WARM_UP)) / 2
    return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (fraction - WARM_UP) / (1 - WARM_UP))) / 2
