from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.steps.base import Data, LayerSelection, Stage, Step
from modelpress.steps.forecast import Forecast

Importance = Literal["auto", "l1", "l2", "taylor", "geometric_median", "batch_norm_scale", "random"]
Kind = Literal["channels", "neurons", "heads", "hidden_units"]
Share = Annotated[float, Field(ge=0, lt=1)]

HALF = 0.5


class ChannelPruning(Step):
    """Remove whole channels, neurons, attention heads and recurrent units, so that the model computes less."""

    step: Literal["channel_pruning"] = "channel_pruning"
    ratio: float | None = Field(
        None, gt=0, lt=1, description="share of the units that goes; 0.5 where no other target is given"
    )
    macs_left: float | None = Field(
        None, gt=0, lt=1, description="instead of ratio: share of the multiply-accumulates that may be left"
    )
    parameters_left: float | None = Field(
        None, gt=0, lt=1, description="instead of ratio: share of the parameters that may be left"
    )
    scope: Literal["uniform", "global"] = Field(
        "uniform", description="the same share of every layer, or the least important units of the whole model"
    )
    importance: Importance = Field(
        "auto",
        description="what tells a unit's worth: the size of its weights (l1, l2), its effect on the answers (taylor), "
        "how far it is from all others (geometric_median), the scale of its batch norm, or chance; auto is taylor "
        "where there is data and l2 where there is none",
    )
    round_to: int = Field(
        8,
        ge=1,
        le=256,
        description="widths that are left are multiples of this, which runtimes compute fastest; a layer that is "
        "narrower than this takes any",
    )
    kinds: tuple[Kind, ...] = Field(
        ("channels", "neurons", "heads", "hidden_units"),
        min_length=1,
        description="what may be removed: channels of convolutions, neurons of linear layers, heads of attention, "
        "hidden units of recurrent layers",
    )
    refit: bool = Field(
        True,
        description="where there is data, fit the layers behind by least squares to what they gave before: "
        "most of what is lost comes back without training",
    )
    layer_ratios: dict[str, Share] = Field(
        {}, description="shares for the layers of these patterns instead, such as `layer1.*`: 0.25; 0 keeps all"
    )
    layers: LayerSelection = LayerSelection()

    needs: ClassVar[Data] = Data.NONE
    stage: ClassVar[Stage] = Stage.STRUCTURE
    until: ClassVar[Stage] = Stage.ZEROS
    paper: ClassVar[str] = (
        "Li et al., 2017, arXiv:1608.08710; Fang et al., 2023, arXiv:2301.12900; Molchanov et al., 2019, "
        "arXiv:1906.10771; He et al., 2019, arXiv:1811.00250; Liu et al., 2017, arXiv:1708.06519; "
        "He et al., 2017, arXiv:1707.06168"
    )

    @model_validator(mode="after")
    def one_target(self) -> Self:
        if sum(target is not None for target in (self.ratio, self.macs_left, self.parameters_left)) > 1:
            raise ValueError("ratio, macs_left and parameters_left are three ways to say one thing: give one of them")
        return self

    def data_needed(self) -> Data:
        return Data.CALIBRATE if self.importance == "taylor" else Data.NONE

    def foresee(self, before: Forecast) -> Forecast:
        if self.parameters_left or self.macs_left:
            # fewer multiply-accumulates do not take the same share of the weights in every net
            return before.left(self.parameters_left or self.macs_left or 1.0)
        if self.changed() & {"kinds", "layer_ratios"}:
            return before.without(self.step)  # a share of less than everything says little
        return before.left((1 - (self.ratio or HALF)) ** before.sides)
