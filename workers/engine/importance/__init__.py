"""What a unit is worth: one module an importance, found by its name, bound to it by `@importance`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from workers.engine.context import Context
    from workers.engine.importance.units import Units

    Score = Callable[[Sequence[Units], Context], list[Tensor]]

IMPORTANCES: dict[str, Importance] = {}


@dataclass(frozen=True)
class Importance:
    score: Score
    """For each of these groups a score (units,), the larger the more a unit is worth. Raises StepError with reasons."""
    comparable: bool
    """Whether scores of different groups mean the same; else they are compared after division by their group's mean."""


def importance(name: str, *, comparable: bool = False) -> Callable[[Score], Score]:
    """Bind a function `(groups, context) -> scores` to the name by which steps ask for it."""

    def bind(function: Score) -> Score:
        if name in IMPORTANCES:
            raise ValueError(f"there are two importances named {name}")
        IMPORTANCES[name] = Importance(function, comparable)
        return function

    return bind


def importance_of(name: str) -> Importance:
    """The one in the module of this name. Raises ImportError or KeyError where there is none."""
    importlib.import_module(f"workers.engine.importance.{name}")
    return IMPORTANCES[name]
