from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.steps.base import Data, LayerSelection, Stage, Step


class MagnitudePruning(Step):
    """Set the smallest weights to zero (unstructured, or 2:4)."""

    step: Literal["magnitude_pruning"] = "magnitude_pruning"
    sparsity: float = Field(0.5, gt=0, lt=1, description="share of the selected weights that becomes zero")
    scope: Literal["global", "layer"] = Field(
        "global", description="one threshold for all layers, or the same sparsity in each"
    )
    pattern: Literal["unstructured", "2:4"] = Field(
        "unstructured", description="2:4 keeps the two largest of every four weights along the input axis"
    )
    schedule: Literal["one_shot", "cubic"] = Field(
        "one_shot", description="cubic prunes in several rounds with distillation in between"
    )
    rounds: int = Field(5, ge=2, le=100, description="rounds of the cubic schedule")
    epochs: int = Field(1, ge=1, le=100, description="epochs of distillation a round, for the cubic schedule")
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.NONE
    stage: ClassVar[Stage] = Stage.ZEROS
    paper: ClassVar[str] = "Han et al., 2015, arXiv:1506.02626; Zhu & Gupta, 2017, arXiv:1710.01878"

    @model_validator(mode="after")
    def two_of_four_is_half(self) -> Self:
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError("the 2:4 pattern always zeroes half of the weights: leave sparsity out, or set it to 0.5")
        return self

    def data_needed(self) -> Data:
        return Data.UNLABELLED if self.schedule == "cubic" else Data.NONE
