from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import Data
from modelpress.steps.training import TrainingStep


class Distillation(TrainingStep):
    """Train the compressed graph to answer as the teacher does; labels are not needed."""

    step: Literal["distillation"] = "distillation"
    temperature: float = Field(2.0, gt=0, le=100, description="softens the outputs of a classifier")
    label_weight: float = Field(
        0.0, ge=0, le=1, description="share of the loss that comes from the labels, where the data has them"
    )
    features: bool = Field(
        False, description="match inner results of layers with the same name too, with automatic projections"
    )

    needs: ClassVar[Data] = Data.UNLABELLED
    after: ClassVar[frozenset[str]] = frozenset(
        {
            "channel_pruning",
            "depth_pruning",
            "magnitude_pruning",
            "distillation",
            "fine_tuning",
            "static_quantization",
            "dynamic_quantization",
            "half_precision",
        }
    )
    paper: ClassVar[str] = "Hinton et al., 2015, arXiv:1503.02531"
