"""What is known of a model or a dataset once it has been read."""

from pydantic import Field

from modelpress.jobs import Strict

Dim = int | str | None


class TensorSpec(Strict):
    """Name, dtype (numpy's word) and shape; a str is a symbolic dimension, None an unknown one."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


class Signature(Strict):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ModelStats(Strict):
    parameters: int = 0
    nonzeros: int = 0
    macs: int | None = Field(
        None, description="multiply-accumulates for one example; symbolic dims other than batch: 1"
    )
    layers: int = 0
    opset: int | None = None
    ops: dict[str, int] = Field(default_factory=dict, description="how often each op occurs")


class ArraySpec(Strict):
    """One array of a dataset. `minimum` and `maximum` are filled for integers, so that labels can be checked early."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: int | None = None
    maximum: int | None = None
    distribution: bool = Field(
        False,
        description="one-hot, or probabilities: never negative, and one in sum over the last axis (the second of four)",
    )


class DatasetSpec(Strict):
    examples: int = Field(ge=0)
    arrays: tuple[ArraySpec, ...]


class ModelSpec(Strict):
    format: str = Field(
        description="of the file that was uploaded: onnx, pt2, huggingface, state_dict, torchscript or packed"
    )
    signature: Signature
    stats: ModelStats
    notes: tuple[str, ...] = Field((), description="what was assumed or left out of reach when reading")
