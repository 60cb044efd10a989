from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.steps.base import Data, Stage, Step


class OutputCompression(Step):
    """Make the answers smaller: fewer decimals, only the best classes, yes or no instead of numbers, a narrower type.
    Labels and the original's answers are still compared with what the smaller answers mean."""

    step: Literal["output_compression"] = "output_compression"
    dtype: Literal["keep", "float16", "uint8"] = Field(
        "float16",
        description="of the numbers that are answered; uint8 are steps between the lowest and the highest answer to "
        "calibration data, or between 0 and 1 where those are probabilities",
    )
    decimals: int | None = Field(None, ge=0, le=12, description="round to so many decimals")
    below: float | None = Field(None, description="answers below this become 0")
    decide: float | Literal["auto"] | None = Field(
        None,
        description="answer 1 above this and 0 below, as uint8; auto is 0.5 for probabilities and 0 for other scores",
    )
    top: int | None = Field(
        None,
        ge=1,
        description="only the so many highest classes, best first: the output NAME holds their values and NAME_indices "
        "which they are",
    )
    values: bool = Field(True, description="with top: send the values too; without them the answer is class numbers")
    outputs: tuple[str, ...] = Field((), description="names of the outputs to treat; all with real numbers by default")

    cannot_hold: ClassVar[dict[str, str]] = {"safetensors": "what becomes of answers"}
    needs: ClassVar[Data] = Data.NONE
    stage: ClassVar[Stage] = Stage.INTERFACE

    @model_validator(mode="after")
    def one_form(self) -> Self:
        if self.decide is not None and (self.top, self.below, self.decimals) != (None, None, None):
            raise ValueError("decide leaves only 0 and 1: top, below and decimals have nothing to add to it")
        if not self.values and self.top is None:
            raise ValueError("values can only be left out where top says how many classes are answered")
        if self.dtype == "keep" and (self.decimals, self.below, self.decide, self.top) == (None,) * 4:
            raise ValueError("with dtype: keep, say what is to become smaller: decimals, below, decide or top")
        return self

    def data_needed(self) -> Data:
        numbers = self.decide is None and self.values
        return Data.CALIBRATE if self.dtype == "uint8" and numbers else Data.NONE
