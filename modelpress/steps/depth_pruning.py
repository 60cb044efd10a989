from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.steps.base import Data, LayerSelection, Stage, Step
from modelpress.steps.forecast import Forecast

QUARTER = 0.25


class DepthPruning(Step):
    """Drop whole residual blocks, those first whose absence moves the model's answers least."""

    step: Literal["depth_pruning"] = "depth_pruning"
    ratio: float | None = Field(
        None, gt=0, lt=1, description="share of the blocks that goes; 0.25 where no other target is given"
    )
    blocks: int | None = Field(
        None,
        ge=1,
        description="instead of ratio: how many blocks go; attention and MLP of a transformer's layer are one each",
    )
    max_effect: float | None = Field(
        None,
        gt=0,
        le=10,
        description="instead of ratio: drop blocks as long as the outputs' relative error stays within this",
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.CALIBRATE
    stage: ClassVar[Stage] = Stage.STRUCTURE
    until: ClassVar[Stage] = Stage.ZEROS
    paper: ClassVar[str] = "Veit et al., 2016, arXiv:1605.06431; Men et al., 2024, arXiv:2403.03853"

    @model_validator(mode="after")
    def one_target(self) -> Self:
        if sum(target is not None for target in (self.ratio, self.blocks, self.max_effect)) > 1:
            raise ValueError("ratio, blocks and max_effect are three ways to say one thing: give one of them")
        return self

    def foresee(self, before: Forecast) -> Forecast:
        return before.without(self.step) if self.blocks or self.max_effect else before.left(1 - (self.ratio or QUARTER))
