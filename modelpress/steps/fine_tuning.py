from typing import ClassVar, Literal

from modelpress.steps.base import Data
from modelpress.steps.training import TrainingStep


class FineTuning(TrainingStep):
    """Train the compressed graph on labelled data; masks and grids of earlier steps are kept."""

    step: Literal["fine_tuning"] = "fine_tuning"

    needs: ClassVar[Data] = Data.TRAIN
    paper: ClassVar[str] = "Han et al., 2015, arXiv:1506.02626"
