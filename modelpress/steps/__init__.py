"""The step catalogue: one module a step, one entry each below. All else that lists steps is made from `STEPS`."""

from typing import Annotated, get_args

from pydantic import Field

from modelpress.steps.activation_clipping import ActivationClipping
from modelpress.steps.base import Data, LayerSelection, Stage, Step
from modelpress.steps.binarization import Binarization
from modelpress.steps.channel_pruning import ChannelPruning
from modelpress.steps.depth_pruning import DepthPruning
from modelpress.steps.distillation import Distillation
from modelpress.steps.dynamic_quantization import DynamicQuantization
from modelpress.steps.feature_selection import FeatureSelection
from modelpress.steps.fine_tuning import FineTuning
from modelpress.steps.half_precision import HalfPrecision
from modelpress.steps.input_compression import InputCompression
from modelpress.steps.lottery_ticket import LotteryTicket
from modelpress.steps.low_rank_factorization import LowRankFactorization
from modelpress.steps.magnitude_pruning import MagnitudePruning
from modelpress.steps.movement_pruning import MovementPruning
from modelpress.steps.output_compression import OutputCompression
from modelpress.steps.quantization_aware_training import QuantizationAwareTraining
from modelpress.steps.static_quantization import StaticQuantization
from modelpress.steps.ternarization import Ternarization
from modelpress.steps.weight_clustering import WeightClustering
from modelpress.steps.weight_only_quantization import WeightOnlyQuantization

AnyStep = Annotated[
    ChannelPruning
    | DepthPruning
    | LowRankFactorization
    | MagnitudePruning
    | MovementPruning
    | LotteryTicket
    | WeightClustering
    | Binarization
    | Ternarization
    | StaticQuantization
    | QuantizationAwareTraining
    | DynamicQuantization
    | WeightOnlyQuantization
    | HalfPrecision
    | ActivationClipping
    | Distillation
    | FineTuning
    | FeatureSelection
    | OutputCompression
    | InputCompression,
    Field(discriminator="step"),
]

STEPS: dict[str, type[Step]] = {cls.model_fields["step"].default: cls for cls in get_args(get_args(AnyStep)[0])}


class IllegalOrderError(ValueError):
    """A recipe whose steps cannot follow each other; `index` is the step that stands too late."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def why_not_after(later: type[Step], earlier: type[Step]) -> str | None:
    """Why a step cannot come anywhere after another in a recipe; None where it can."""
    name, other = (cls.model_fields["step"].default for cls in (later, earlier))
    if other in later.never_after:
        return f"{name} cannot come after {other}: {later.never_after[other]}"
    if earlier.stage > later.until:
        return (
            f"{name} cannot come after {other}, which has fixed {earlier.stage.fixes}, because it would undo that: "
            f"move {name} before it"
        )
    return None


def allowed_before(step: type[Step]) -> list[str]:
    """Names of the steps that may come anywhere before this one."""
    return [name for name, earlier in STEPS.items() if why_not_after(step, earlier) is None]


def check_order(recipe: list[AnyStep]) -> None:
    """Raise IllegalOrderError unless every step may come after all those before it."""
    for index, later in enumerate(recipe):
        for earlier in recipe[:index]:
            reason = why_not_after(type(later), type(earlier)) or earlier.why_not_before(later)
            if reason is not None:
                raise IllegalOrderError(index, reason)


__all__ = [
    "STEPS",
    "AnyStep",
    "Data",
    "IllegalOrderError",
    "LayerSelection",
    "Stage",
    "Step",
    "allowed_before",
    "check_order",
    "why_not_after",
]
