import math
from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import Data, LayerSelection, Stage
from modelpress.steps.forecast import Forecast
from modelpress.steps.training import TaughtStep


class WeightClustering(TaughtStep):
    """Let the weights of a layer share a few values, found by k-means, and store which one each has. Zeros stay zero
    and are one of the values. Where there is data, the values are trained afterwards."""

    step: Literal["weight_clustering"] = "weight_clustering"
    values: int = Field(16, ge=2, le=256, description="how many values the weights of a layer may have, zero included")
    biases: bool = Field(
        False,
        description="let all biases of the model share as many values, too: it pays in packed files, where every byte "
        "counts",
    )
    train: bool | None = Field(
        None,
        description="train the values to answer as the teacher does; by default where there is training data. The "
        "options of the training are for this alone",
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.NONE
    stage: ClassVar[Stage] = Stage.VALUES
    until: ClassVar[Stage] = Stage.VALUES
    paper: ClassVar[str] = "Han et al., 2016, arXiv:1510.00149"

    def data_needed(self) -> Data:
        return Data.UNLABELLED if self.train else Data.NONE

    def foresee(self, before: Forecast) -> Forecast:
        return before.stored(2 ** math.ceil(math.log2(math.log2(self.values))))
