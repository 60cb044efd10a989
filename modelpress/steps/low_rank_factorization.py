from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.steps.base import Data, LayerSelection, Stage, Step
from modelpress.steps.forecast import Forecast

MOST = 0.95


class LowRankFactorization(Step):
    """Split layers into two or three thinner ones with nearly the same product: linear and recurrent layers by SVD,
    convolutions by Tucker-2. A layer is split only where that costs less, and where it is measured to be faster."""

    step: Literal["low_rank_factorization"] = "low_rank_factorization"
    energy: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of its energy that each layer keeps: of its squared singular values or, where there is "
        "data, of what it gives for real inputs; 0.95 where no other target is given",
    )
    macs_left: float | None = Field(
        None, gt=0, lt=1, description="instead of energy: share of the multiply-accumulates that may be left"
    )
    parameters_left: float | None = Field(
        None, gt=0, lt=1, description="instead of energy: share of the parameters that may be left"
    )
    max_error: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="instead of energy: as low as the outputs' relative error, measured on the calibration data, "
        "stays within this",
    )
    round_to: int = Field(8, ge=1, le=256, description="ranks are multiples of this, which runtimes compute fastest")
    measure: bool = Field(
        True, description="run each layer whole and split in ONNX Runtime, and leave whole what gets no faster by it"
    )
    embeddings: bool = Field(
        False,
        description="split embedding tables too, which makes the model smaller, not faster: each lookup becomes a "
        "lookup and a product",
    )
    refit: bool = Field(
        True,
        description="where there is data, fit the last part of each split layer by least squares to what the layer "
        "gave before",
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.NONE
    synthetic: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.STRUCTURE
    paper: ClassVar[str] = (
        "Kim et al., 2016, arXiv:1511.06530; Denton et al., 2014, arXiv:1404.0736; Wang et al., 2024, arXiv:2403.07378"
    )

    @model_validator(mode="after")
    def one_target(self) -> Self:
        targets = (self.energy, self.macs_left, self.parameters_left, self.max_error)
        if sum(target is not None for target in targets) > 1:
            raise ValueError(
                "energy, macs_left, parameters_left and max_error are four ways to say one thing: give one of them"
            )
        return self

    def foresee(self, before: Forecast) -> Forecast:
        share = self.parameters_left or self.macs_left
        return before.without(self.step) if share is None else before.left(share)

    def data_needed(self) -> Data:
        return Data.NONE if self.max_error is None else Data.CALIBRATE
