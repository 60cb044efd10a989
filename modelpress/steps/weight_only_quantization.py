from typing import ClassVar, Literal

from pydantic import Field, field_validator

from modelpress.steps.base import Data, LayerSelection, Stage, Step
from modelpress.steps.forecast import Forecast

FINEST_GROUP = 16
SCALES = 0.4
"""Bits a weight that scales and zero points take, about."""


class WeightOnlyQuantization(Step):
    """Store weights in 8, 4, 3 or 2 bits, with a scale for each group of them. Runtimes unfold them to floats when they
    load the file, or multiply them as they are where that is faster."""

    step: Literal["weight_only_quantization"] = "weight_only_quantization"
    bits: Literal[8, 4, 3, 2] = Field(4, description="that a weight takes; the scales of the groups come on top")
    method: Literal["auto", "rtn", "hqq", "gptq"] = Field(
        "auto",
        description="rtn rounds each weight by itself, hqq fits the scales so that few errors are large, gptq lets "
        "later weights make up for the rounding of earlier ones on calibration data; auto is gptq where there is data "
        "and hqq where there is none",
    )
    group_size: int | Literal["auto"] | None = Field(
        "auto",
        description="weights with one scale, a power of two from 16 on; null: one scale for each output channel; auto "
        "decides by the bits",
    )
    symmetric: bool = Field(
        False, description="no zero points: a little smaller, and a little worse where weights lie on one side of zero"
    )
    products: Literal["auto", "float"] = Field(
        "auto",
        description="auto multiplies large matrices of 8, 4 and 2 bits without unfolding them, where that is faster: "
        "what is multiplied with them is rounded to 8 bits for each group then; float computes all in float",
    )
    largest_error: float = Field(
        1.0,
        gt=0,
        le=1,
        description="layers that hurt most for their size are stored in 8 bits while the outputs' relative error is "
        "above this; 1 keeps none",
    )
    bias_correction: bool = Field(
        True, description="where there is data, take the mean error of each layer out of its bias if that helps"
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.NONE
    synthetic: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.STORAGE
    never_after: ClassVar[dict[str, str]] = {
        "static_quantization": "its layers are in 8 bits already: put weight_only_quantization first",
        "dynamic_quantization": "its layers are in 8 bits already: put weight_only_quantization first",
        "half_precision": "weights that were rounded to 16 bits gain nothing by that: put half_precision last",
    }
    paper: ClassVar[str] = (
        "Frantar et al., 2022, arXiv:2210.17323; Badri & Shaji, 2023, mobiusml.github.io/hqq_blog; "
        "Nagel et al., 2019, arXiv:1906.04721"
    )

    @field_validator("group_size")
    @classmethod
    def power_of_two(cls, size: int | str | None) -> int | str | None:
        if isinstance(size, int) and (size < FINEST_GROUP or size & (size - 1)):
            raise ValueError(f"a group has 16, 32, 64, … weights, not {size}")
        return size

    def data_needed(self) -> Data:
        return Data.CALIBRATE if self.method == "gptq" else Data.NONE

    def foresee(self, before: Forecast) -> Forecast:
        return before.stored(self.bits + SCALES)
