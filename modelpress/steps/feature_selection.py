from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.steps.base import Data, Stage, Step

QUARTER = 0.25


class FeatureSelection(Step):
    """Drop input channels or features that do not matter, so that callers need not send them; or cut the model at a
    layer, whose result becomes the answer: a feature extractor."""

    step: Literal["feature_selection"] = "feature_selection"
    ratio: float | None = Field(
        None, gt=0, lt=1, description="share of the features that goes; 0.25 where nothing else is asked for"
    )
    keep: int | None = Field(None, ge=1, description="instead of ratio: how many features stay")
    max_effect: float | None = Field(
        None,
        gt=0,
        le=10,
        description="instead of ratio: drop features as long as the outputs' relative error stays within this",
    )
    importance: Literal["permutation", "weights"] = Field(
        "permutation",
        description="what tells a feature's worth: how far the answers move when its values are shuffled among the "
        "examples, or the size of the weights that read it, times its spread",
    )
    refit: bool = Field(
        True, description="fit the layers behind by least squares to what they gave before, as channel_pruning does"
    )
    inputs: tuple[str, ...] = Field((), description="names of the inputs to select from; all by default")
    cut: str | None = Field(
        None, description="a layer by name: what it gives becomes the only output, all behind it goes"
    )

    needs: ClassVar[Data] = Data.CALIBRATE
    synthetic: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.STRUCTURE
    until: ClassVar[Stage] = Stage.ZEROS
    paper: ClassVar[str] = "Breiman, 2001, doi:10.1023/A:1010933404324; He et al., 2017, arXiv:1707.06168"

    @property
    def selects(self) -> bool:
        """Whether features go; a cut alone leaves them."""
        return self.cut is None or any(target is not None for target in (self.ratio, self.keep, self.max_effect))

    @model_validator(mode="after")
    def one_target(self) -> Self:
        if sum(target is not None for target in (self.ratio, self.keep, self.max_effect)) > 1:
            raise ValueError("ratio, keep and max_effect are three ways to say one thing: give one of them")
        return self

    def data_needed(self) -> Data:
        return Data.CALIBRATE if self.selects else Data.NONE
