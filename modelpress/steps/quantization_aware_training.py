from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import LayerSelection, Stage
from modelpress.steps.forecast import Forecast
from modelpress.steps.training import TaughtStep


class QuantizationAwareTraining(TaughtStep):
    """Train the weights on a grid of few bits whose steps are learned with them (LSQ), to answer as the teacher does.
    Batch norms are folded first."""

    step: Literal["quantization_aware_training"] = "quantization_aware_training"
    weight_bits: Literal[8, 4, 3, 2] = Field(
        4, description="that a weight takes; each channel has a scale, learned below 8 bits"
    )
    activation_bits: Literal[8] | None = Field(
        None,
        description="8: activations are on learned 8-bit grids too, so that the runtime computes in integers (QDQ, in "
        "which weights of fewer bits take a byte each unless the file is packed); null: they stay float",
    )
    keep_edges: bool = Field(True, description="the first and the last layer have 8 bits, whatever the others have")
    learning_rate: float = Field(
        3e-4, gt=0, le=1, description="peak of the one-cycle schedule, for AdamW; more undoes a transformer"
    )
    layers: LayerSelection = LayerSelection()

    synthetic: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.STORAGE
    until: ClassVar[Stage] = Stage.STORAGE
    never_after: ClassVar[dict[str, str]] = {
        "quantization_aware_training": "its weights are on trained grids already; train on with distillation",
        "static_quantization": "its grids are fixed: leave static_quantization out and set activation_bits to 8",
        "dynamic_quantization": "its layers are in 8 bits already: leave dynamic_quantization out",
        "weight_only_quantization": "its grids are fixed: leave weight_only_quantization out",
        "half_precision": "weights that were rounded to 16 bits gain nothing by that: put half_precision last",
    }
    paper: ClassVar[str] = "Esser et al., 2020, arXiv:1902.08153; Bhalgat et al., 2020, arXiv:2004.09576"

    def foresee(self, before: Forecast) -> Forecast:
        return before.stored(8 if self.activation_bits else self.weight_bits)
