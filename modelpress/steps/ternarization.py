from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import LayerSelection, Stage
from modelpress.steps.forecast import Forecast
from modelpress.steps.training import TaughtStep


class Ternarization(TaughtStep):
    """Train weights that have three values a channel, -a, 0 and a, and are stored in two bits. Zeros that earlier steps
    have made stay zero."""

    step: Literal["ternarization"] = "ternarization"
    keep_edges: bool = Field(True, description="the first and the last layer stay as they are")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="peak of the one-cycle schedule, for AdamW")
    layers: LayerSelection = LayerSelection()

    synthetic: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.VALUES
    until: ClassVar[Stage] = Stage.VALUES
    never_after: ClassVar[dict[str, str]] = {
        "ternarization": "its weights have three values already; train on with distillation",
        "binarization": "its weights have two values already; train on with distillation",
        "weight_clustering": "the values that weights share would be lost: leave weight_clustering out",
    }
    paper: ClassVar[str] = "Li & Liu, 2016, arXiv:1605.04711; Zhu et al., 2017, arXiv:1612.01064"

    def foresee(self, before: Forecast) -> Forecast:
        return before.stored(2)
