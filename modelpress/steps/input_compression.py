from typing import ClassVar, Literal

from pydantic import Field

from modelpress.steps.base import Data, Stage, Step

PerChannel = float | tuple[float, ...]


class InputCompression(Step):
    """Take what callers have at hand: bytes of an image, with its normalisation inside the model; token ids in fewer
    bytes; smaller images where the model runs on them. Data sent with a job stay in the original's form."""

    step: Literal["input_compression"] = "input_compression"
    floats: Literal["auto", "uint8", "keep"] = Field(
        "auto",
        description="take inputs of real numbers as uint8; auto does so where scale, mean or std say what bytes mean",
    )
    scale: float | None = Field(
        None, gt=0, description="of the bytes: the original's input is (byte × scale - mean) / std; 1/255 by default"
    )
    mean: PerChannel = Field(0.0, description="that callers subtract now; one number, or one a channel")
    std: PerChannel = Field(1.0, description="that callers divide by now; one number, or one a channel")
    integers: Literal["auto", "int32", "int16", "uint8", "keep"] = Field(
        "auto",
        description="type of whole numbers; auto is the smallest that counts the rows of the table they pick from",
    )
    resolution: float | None = Field(
        None,
        ge=0.1,
        lt=1,
        description="share of height and width that callers send; the model computes on the small image where it can "
        "and enlarges it first where it cannot",
    )
    inputs: tuple[str, ...] = Field((), description="names of the inputs to treat; all by default")

    cannot_hold: ClassVar[dict[str, str]] = {"safetensors": "what becomes of inputs"}
    needs: ClassVar[Data] = Data.NONE
    stage: ClassVar[Stage] = Stage.INTERFACE
    never_after: ClassVar[dict[str, str]] = {
        "input_compression": "what the model takes is compressed already; one step can name several inputs",
    }
