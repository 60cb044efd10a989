from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import Data, LayerSelection, Step


class HalfPrecision(Step):
    """Store weights in 16 bits; layers whose values do not fit, or that lose too much, stay float."""

    step: Literal["half_precision"] = "half_precision"
    dtype: Literal["float16", "bfloat16"] = Field(
        "float16", description="bfloat16 has float32's range, but 8 bits less"
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.NONE
    after: ClassVar[frozenset[str]] = frozenset(
        {
            "channel_pruning",
            "depth_pruning",
            "magnitude_pruning",
            "distillation",
            "fine_tuning",
            "static_quantization",
            "dynamic_quantization",
        }
    )
    paper: ClassVar[str] = "Micikevicius et al., 2018, arXiv:1710.03740"
