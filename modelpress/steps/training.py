"""The options that every step with a training loop shares."""

from typing import ClassVar

from pydantic import Field

from modelpress.steps.base import Data, Stage, Step


class TrainingStep(Step):
    epochs: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="passes over the training data; by default 3, and more where that is fewer than 300 updates",
    )
    batch_size: int = Field(64, ge=2, le=65536, description="examples an update")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="peak of the one-cycle schedule, for AdamW")
    weight_decay: float = Field(0.0, ge=0, le=1, description="of AdamW: share by which weights shrink, times the rate")
    seconds: float | None = Field(None, gt=0, description="stop the training after this long and keep the best weights")
    validation: float = Field(
        0.1, ge=0, lt=1, description="share of the training data held out, to keep the best weights by"
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="stop after this many epochs in which the held-out loss has not fallen; never by default",
    )

    stage: ClassVar[Stage] = Stage.TRAINING
    until: ClassVar[Stage] = Stage.INTERFACE
    never_after: ClassVar[dict[str, str]] = {
        "output_compression": "what its answers leave out has no gradient: put output_compression last",
    }


class TaughtStep(TrainingStep):
    """Trains the graph to answer as the teacher does, with or without labels."""

    temperature: float = Field(2.0, gt=0, le=100, description="softens the outputs of a classifier")
    label_weight: float = Field(
        0.0, ge=0, le=1, description="share of the loss that comes from the labels, where the data has them"
    )
    features: bool = Field(
        False,
        description="match the inner results of layers too, by name or by depth, with automatic projections",
    )
    attention: bool = Field(
        False,
        description="match where the teacher looks too: the attention of transformers, or else the places of an image "
        "at which convolutions answer most",
    )

    needs: ClassVar[Data] = Data.UNLABELLED

    def reads_labels(self) -> bool:
        return self.label_weight > 0 and self.data_needed() is not Data.NONE
