from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import LayerSelection, Stage
from modelpress.steps.forecast import Forecast
from modelpress.steps.training import TaughtStep


class LotteryTicket(TaughtStep):
    """Find the few weights that could have been trained alone: train, set the smallest to zero, take all others back to
    where they started, and so on; at last train what is left once more. The ticket itself, the starting weights with
    their mask, is given out beside the result."""

    step: Literal["lottery_ticket"] = "lottery_ticket"
    sparsity: float = Field(0.8, gt=0, lt=1, description="share of the selected weights that is zero in the end")
    round_share: float = Field(
        0.2, gt=0, lt=1, description="share of what is left that goes in each round, nearly: all of them take the same"
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="one threshold for all layers, or the same sparsity in each"
    )
    rewind: Literal["uploaded", "initial", "early"] = Field(
        "uploaded",
        description="where weights go back to: as they were uploaded; drawn anew, as before any training; or early in "
        "the training of those, which larger nets need",
    )
    early: float = Field(
        0.05, gt=0, lt=1, description="for rewind early: the share of the first training after which that is"
    )
    layers: LayerSelection = LayerSelection()

    stage: ClassVar[Stage] = Stage.ZEROS
    until: ClassVar[Stage] = Stage.ZEROS
    paper: ClassVar[str] = "Frankle & Carbin, 2019, arXiv:1803.03635; Frankle et al., 2019, arXiv:1903.01611"

    def foresee(self, before: Forecast) -> Forecast:
        return before.sparse(self.sparsity)
