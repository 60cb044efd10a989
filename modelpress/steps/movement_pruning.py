from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import Data, LayerSelection, Stage
from modelpress.steps.forecast import Forecast
from modelpress.steps.training import TaughtStep


class MovementPruning(TaughtStep):
    """Train the graph, and set those weights to zero that the training moves towards it, wherever they started. Each
    weight has a score that learns with it; the share of zeros grows as training goes on."""

    step: Literal["movement_pruning"] = "movement_pruning"
    sparsity: float = Field(0.9, gt=0, lt=1, description="share of the selected weights that becomes zero")
    scope: Literal["global", "layer"] = Field(
        "global", description="one threshold for the scores of all layers, or the same sparsity in each"
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.UNLABELLED
    stage: ClassVar[Stage] = Stage.ZEROS
    until: ClassVar[Stage] = Stage.ZEROS
    paper: ClassVar[str] = "Sanh et al., 2020, arXiv:2005.07683"

    def foresee(self, before: Forecast) -> Forecast:
        return before.sparse(self.sparsity)
