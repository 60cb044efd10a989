from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import Data, LayerSelection, Stage, Step
from modelpress.steps.forecast import Forecast
from modelpress.steps.training import TaughtStep

NO_ZERO = "two values leave no place for its zeros, which ternarization keeps"


class Binarization(TaughtStep):
    """Train weights that have two values a channel, -a and a, and are stored in one bit (BWN). What the layers read can
    be binary as well (XNOR), and so can the answers. Runtimes compute all of it in float."""

    step: Literal["binarization"] = "binarization"
    activations: bool = Field(
        False,
        description="what the layers read has two values as well, which are learned: for engines that have binary "
        "kernels, since ONNX Runtime has none and becomes a little slower by it",
    )
    outputs: bool = Field(
        False,
        description="answer 1 for probabilities above 0.5 and scores above 0, else 0: what output_compression does "
        "with decide. Nothing can be trained by such answers, so let no training follow",
    )
    keep_edges: bool = Field(True, description="the first and the last layer stay as they are")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="peak of the one-cycle schedule, for AdamW")
    layers: LayerSelection = LayerSelection()

    synthetic: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.VALUES
    until: ClassVar[Stage] = Stage.VALUES
    never_after: ClassVar[dict[str, str]] = {
        "binarization": "its weights have two values already; train on with distillation",
        "ternarization": NO_ZERO,
        "weight_clustering": "the values that weights share would be lost: leave weight_clustering out",
        "magnitude_pruning": NO_ZERO,
        "movement_pruning": NO_ZERO,
        "lottery_ticket": NO_ZERO,
    }
    paper: ClassVar[str] = "Rastegari et al., 2016, arXiv:1603.05279; Courbariaux et al., 2015, arXiv:1511.00363"

    def why_not_before(self, later: Step) -> str | None:
        if self.outputs and later.data_needed() in (Data.UNLABELLED, Data.TRAIN):
            return (
                f"{later.step} cannot come after binarization with outputs: answers of 0 and 1 have no gradient; leave "
                "outputs out, and put output_compression with decide: auto last"
            )
        return None

    def foresee(self, before: Forecast) -> Forecast:
        return before.stored(1)
