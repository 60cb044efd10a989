from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import Data, LayerSelection, Stage, Step
from modelpress.steps.forecast import Forecast


class DynamicQuantization(Step):
    """Store the weights of linear, recurrent and embedding layers in int8, per channel; activations are quantized at
    run time where the runtime gains by it. Convolutions are never touched: they would get slower."""

    step: Literal["dynamic_quantization"] = "dynamic_quantization"
    weight_bits: Literal["auto", 7, 8] = Field(
        "auto", description="7 avoids saturation on CPUs without VNNI; auto decides by the job's runtime"
    )
    largest_error: float = Field(
        0.1,
        ge=0,
        le=1,
        description="while quantized activations move the outputs by more than this share, the layers that do most of "
        "that for what they gain compute in float from their 8-bit weights; 0: all do, 1: none does",
    )
    smooth: bool = Field(
        False,
        description="SmoothQuant in front of linear layers, where it makes their answers better; values larger than "
        "all in the calibration data then cost more than without",
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.NONE
    stage: ClassVar[Stage] = Stage.STORAGE
    never_after: ClassVar[dict[str, str]] = {
        "dynamic_quantization": "its layers are in 8 bits already; one step with a wider selection does both",
        "half_precision": "weights that were rounded to 16 bits gain nothing by that: put half_precision last",
    }
    paper: ClassVar[str] = "Jacob et al., 2018, arXiv:1712.05877"

    def foresee(self, before: Forecast) -> Forecast:
        return before.stored(8)
