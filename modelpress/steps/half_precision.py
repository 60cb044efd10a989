from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import Data, LayerSelection, Stage, Step
from modelpress.steps.forecast import Forecast


class HalfPrecision(Step):
    """Store weights in 16 bits; layers whose values do not fit, or that lose too much, stay float."""

    step: Literal["half_precision"] = "half_precision"
    dtype: Literal["float16", "bfloat16"] = Field(
        "float16", description="bfloat16 has float32's range, but 8 bits less"
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.NONE
    stage: ClassVar[Stage] = Stage.STORAGE
    never_after: ClassVar[dict[str, str]] = {
        "half_precision": "its weights are in 16 bits already; one step with a wider selection does both",
    }
    paper: ClassVar[str] = "Micikevicius et al., 2018, arXiv:1710.03740"

    def foresee(self, before: Forecast) -> Forecast:
        return before.stored(16)
