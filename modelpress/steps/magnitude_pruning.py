from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.steps.base import Data, LayerSelection, Stage
from modelpress.steps.forecast import Forecast
from modelpress.steps.training import TaughtStep

HALF = 0.5


class MagnitudePruning(TaughtStep):
    """Set the smallest weights to zero: any of them, or all but n of every m. At once, or step by step while the graph
    is trained to answer as the teacher does."""

    step: Literal["magnitude_pruning"] = "magnitude_pruning"
    sparsity: float | None = Field(
        None, gt=0, lt=1, description="share of the selected weights that becomes zero; 0.5 where no pattern says it"
    )
    scope: Literal["global", "adaptive", "layer"] = Field(
        "global",
        description="one threshold for all layers; one for the weights' shares of what is left of their layer, which "
        "spares small layers; or the same sparsity in each layer",
    )
    pattern: str = Field(
        "unstructured",
        pattern=r"^(unstructured|[1-9]\d?:[1-9]\d?)$",
        description="unstructured, or n:m, such as 2:4, which keeps the n largest of every m weights along the input "
        "axis",
    )
    schedule: Literal["one_shot", "cubic"] = Field(
        "one_shot",
        description="cubic prunes during one training, much at first and little at last, and trains what is left; the "
        "options of the training are for this alone",
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.NONE
    stage: ClassVar[Stage] = Stage.ZEROS
    until: ClassVar[Stage] = Stage.ZEROS
    paper: ClassVar[str] = (
        "Han et al., 2015, arXiv:1506.02626; Zhu & Gupta, 2017, arXiv:1710.01878; Zhou et al., 2021, arXiv:2102.04010; "
        "Lee et al., 2021, arXiv:2010.07611"
    )

    @model_validator(mode="after")
    def a_pattern_says_the_sparsity(self) -> Self:
        if self.n_m is None:
            return self
        n, m = self.n_m
        if n >= m:
            raise ValueError(f"the {self.pattern} pattern zeroes nothing: n has to be less than m")
        if self.sparsity is not None and abs(self.sparsity - self.share) > 1e-3:
            raise ValueError(
                f"the {self.pattern} pattern always zeroes {self.share:.3g} of the weights: leave sparsity out"
            )
        return self

    @property
    def n_m(self) -> tuple[int, int] | None:
        """How many of how many weights stay; None where any may go."""
        if self.pattern == "unstructured":
            return None
        n, m = self.pattern.split(":")
        return int(n), int(m)

    @property
    def share(self) -> float:
        """Of the weights, that becomes zero."""
        if self.n_m is not None:
            n, m = self.n_m
            return 1 - n / m
        return HALF if self.sparsity is None else self.sparsity

    def data_needed(self) -> Data:
        return Data.UNLABELLED if self.schedule == "cubic" else Data.NONE

    def foresee(self, before: Forecast) -> Forecast:
        return before.sparse(self.share)
