from typing import Literal

from pydantic import BaseModel, Field

from app.models.schemas import StoredError
from app.web.fields import DatasetId, Timestamp
from modelpress.models import ArraySpec

SUFFIXES = (".npz", ".safetensors", ".parquet")


class Dataset(BaseModel):
    """Immutable data: named arrays whose first axis counts the examples."""

    id: DatasetId
    name: str
    filename: str
    status: Literal["processing", "ready", "rejected"]
    error: StoredError | None = Field(None, description="why it was rejected")
    size_bytes: int
    sha256: str
    examples: int | None = Field(None, description="null until it has been read")
    arrays: tuple[ArraySpec, ...] = ()
    created_at: Timestamp
