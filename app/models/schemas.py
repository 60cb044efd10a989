from typing import Literal

from pydantic import BaseModel, Field

from app.web.fields import JobId, ModelId, Timestamp
from modelpress.models import ModelStats, Signature

WEIGHTS = (".safetensors", ".pt", ".pth")
"""Files that may hold weights alone. A `.pt` may as well be TorchScript, which is whole."""
SUFFIXES = (".onnx", ".pt2", ".zip", ".packed", *WEIGHTS)


class StoredError(BaseModel):
    """Why an upload was rejected."""

    code: str
    message: str


class ModelFile(BaseModel):
    format: str
    filename: str
    size_bytes: int
    sha256: str


class Model(BaseModel):
    """An immutable model: an upload, or the result of a job (then it has a parent)."""

    id: ModelId
    name: str
    filename: str
    status: Literal["processing", "ready", "rejected"]
    error: StoredError | None = Field(None, description="why it was rejected")
    format: str | None = Field(None, description="of the first file; null until it has been read")
    size_bytes: int
    sha256: str
    signature: Signature | None = None
    stats: ModelStats | None = None
    notes: tuple[str, ...] = Field((), description="what was assumed or left out of reach when reading")
    architecture_id: ModelId | None = Field(None, description="whose architecture the weights were put into")
    parent_id: ModelId | None = Field(None, description="the model that this one was made from")
    job_id: JobId | None = Field(None, description="the job that made it")
    files: list[ModelFile]
    created_at: Timestamp
