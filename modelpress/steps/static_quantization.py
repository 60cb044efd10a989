from typing import Annotated, ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import Data, LayerSelection, Stage, Step
from modelpress.steps.forecast import Forecast


class StaticQuantization(Step):
    """Store weights and compute activations in int8, with ranges found on calibration data (QDQ)."""

    step: Literal["static_quantization"] = "static_quantization"
    ranges: Literal["auto", "min_max", "percentile", "entropy", "mse"] = Field(
        "auto", description="how an activation's range is found; auto takes the best of them for each tensor"
    )
    weight_bits: Literal["auto", 7, 8] = Field(
        "auto", description="7 avoids saturation on CPUs without VNNI; auto decides by the job's runtime"
    )
    equalize: bool = Field(True, description="cross-layer equalization before the ranges are found")
    bias_correction: bool = Field(True, description="take the mean error of each layer out of its bias")
    smooth: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] | None = Field(
        "auto",
        description="SmoothQuant strength for the linear layers of transformers; auto finds the best for each group of "
        "layers, where it makes their answers better",
    )
    adaptive_rounding: bool = Field(False, description="AdaRound: learn each weight's rounding on the calibration data")
    keep_float: float = Field(
        0.1, ge=0, le=1, description="leave layers float while the outputs' relative error is above this; 1 never does"
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.CALIBRATE
    synthetic: ClassVar[bool] = True
    cannot_hold: ClassVar[dict[str, str]] = dict.fromkeys(("pt2", "safetensors"), "activations in integers")
    stage: ClassVar[Stage] = Stage.STORAGE
    never_after: ClassVar[dict[str, str]] = {
        "static_quantization": "its activations are on grids already",
        "quantization_aware_training": "set its activation_bits to 8 instead: then the ranges are trained, too",
        "dynamic_quantization": "its layers compute in integers already; exclude layers from the first instead",
        "half_precision": "weights that were rounded to 16 bits gain nothing by that: put half_precision last",
    }
    paper: ClassVar[str] = (
        "Jacob et al., 2018, arXiv:1712.05877; Nagel et al., 2019, arXiv:1906.04721; "
        "Nagel et al., 2020, arXiv:2004.10568; Xiao et al., 2023, arXiv:2211.10438"
    )

    def foresee(self, before: Forecast) -> Forecast:
        return before.stored(8)
