"""What every step of the catalogue declares: its options, the data it needs and what may come before it."""

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Data(StrEnum):
    """The least data a step needs. More always does better."""

    NONE = "none"
    CALIBRATE = "calibrate"
    """Some hundreds of inputs, without labels."""
    UNLABELLED = "unlabelled"
    """Training inputs; labels are not looked at."""
    TRAIN = "train"
    """Training inputs with labels."""


class LayerSelection(BaseModel):
    """Layers by name, as shell-style patterns (`layer1.*`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: tuple[str, ...] = Field(("*",), description="patterns of the layers to touch")
    exclude: tuple[str, ...] = Field((), description="patterns of the layers to leave alone; wins over include")

    def selects(self, name: str) -> bool:
        return any(fnmatchcase(name, p) for p in self.include) and not any(fnmatchcase(name, p) for p in self.exclude)


class Step(BaseModel):
    """One technique with its options. Subclasses add a literal `step` and the declarations below."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str

    needs: ClassVar[Data] = Data.NONE
    after: ClassVar[frozenset[str]] = frozenset()
    """Names of the steps that may come anywhere before this one in a recipe."""
    paper: ClassVar[str] = ""
    """Where the technique was published."""

    def data_needed(self) -> Data:
        """The least data this step needs with these options."""
        return self.needs
