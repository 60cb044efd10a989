"""The step catalogue: one module a step, one entry each below. All else that lists steps is made from `STEPS`."""

from typing import Annotated, get_args

from pydantic import Field

from modelpress.steps.base import Data, LayerSelection, Step
from modelpress.steps.channel_pruning import ChannelPruning
from modelpress.steps.depth_pruning import DepthPruning
from modelpress.steps.distillation import Distillation
from modelpress.steps.dynamic_quantization import DynamicQuantization
from modelpress.steps.fine_tuning import FineTuning
from modelpress.steps.half_precision import HalfPrecision
from modelpress.steps.magnitude_pruning import MagnitudePruning
from modelpress.steps.static_quantization import StaticQuantization

AnyStep = Annotated[
    ChannelPruning
    | DepthPruning
    | MagnitudePruning
    | StaticQuantization
    | DynamicQuantization
    | HalfPrecision
    | Distillation
    | FineTuning,
    Field(discriminator="step"),
]

STEPS: dict[str, type[Step]] = {cls.model_fields["step"].default: cls for cls in get_args(get_args(AnyStep)[0])}


class IllegalOrderError(ValueError):
    """A recipe whose steps cannot follow each other; `index` is the step that stands too late."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def check_order(recipe: list[AnyStep]) -> None:
    """Raise IllegalOrderError unless every step may come after all those before it."""
    for index, later in enumerate(recipe):
        for earlier in recipe[:index]:
            if earlier.step not in later.after:
                allowed = ", ".join(sorted(later.after)) or "nothing"
                raise IllegalOrderError(
                    index, f"{later.step} cannot come after {earlier.step}; it may come after: {allowed}"
                )


__all__ = ["STEPS", "AnyStep", "Data", "IllegalOrderError", "LayerSelection", "Step", "check_order"]
