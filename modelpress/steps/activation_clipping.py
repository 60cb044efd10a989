from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.steps.base import Data, LayerSelection, Stage
from modelpress.steps.training import TaughtStep

HIGH = 6.0
"""ReLU6's bound, where bounds are given by nobody."""


class ActivationClipping(TaughtStep):
    """Bound what layers answer, as ReLU6 does: rare large values go, and with them the coarse grids that 8-bit
    activations need for their sake."""

    step: Literal["activation_clipping"] = "activation_clipping"
    bounds: Literal["given", "calibrated", "learned"] = Field(
        "calibrated",
        description="low and high below, for all; or for each result by itself what it reaches on calibration data; "
        "learned ones start there and are trained with the weights (PACT)",
    )
    low: float | None = Field(None, description="lower bound for bounds: given; results that are never negative keep 0")
    high: float | None = Field(None, description="upper bound for bounds: given; 6 where neither is set")
    percentile: float = Field(
        99.9,
        gt=50,
        le=100,
        description="share of a result's values, in percent, that calibrated bounds leave as they are; 100: all",
    )
    where: Literal["layers", "outputs", "both"] = Field(
        "layers", description="bound what the selected layers give to others, the model's outputs, or both"
    )
    decay: float = Field(
        1e-3, ge=0, le=1, description="L2 regularisation of learned bounds: larger values make them narrower"
    )
    bits: int = Field(
        8, ge=2, le=16, description="of the grid that learned bounds are trained for: fewer make them narrower"
    )
    layers: LayerSelection = LayerSelection()

    until: ClassVar[Stage] = Stage.VALUES
    cannot_hold: ClassVar[dict[str, str]] = {"safetensors": "bounds of inner results"}
    needs: ClassVar[Data] = Data.CALIBRATE
    synthetic: ClassVar[bool] = True
    paper: ClassVar[str] = "Choi et al., 2018, arXiv:1805.06085"

    @model_validator(mode="after")
    def fitting_bounds(self) -> Self:
        given = self.low is not None or self.high is not None
        if given and self.bounds != "given":
            raise ValueError("low and high are taken only with bounds: given")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low must be below high")
        return self

    def data_needed(self) -> Data:
        return {"given": Data.NONE, "calibrated": Data.CALIBRATE, "learned": Data.UNLABELLED}[self.bounds]

    def reads_labels(self) -> bool:
        return self.bounds == "learned" and self.label_weight > 0
