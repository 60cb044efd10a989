"""What every step of the catalogue declares: its options, the data it needs and what may come before it."""

from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from modelpress.steps.forecast import Forecast


class Data(StrEnum):
    """The least data a step needs. More always does better."""

    NONE = "none"
    CALIBRATE = "calibrate"
    """Some hundreds of inputs, without labels."""
    UNLABELLED = "unlabelled"
    """Training inputs; labels are not looked at."""
    TRAIN = "train"
    """Training inputs with labels."""


class Stage(IntEnum):
    """What a step fixes. A recipe goes from shapes to stored forms; training may stand anywhere."""

    TRAINING = 0
    """Nothing: values change, whatever form they have is kept."""
    STRUCTURE = 1
    """The shapes of layers, and which there are."""
    ZEROS = 2
    """Which weights are zero."""
    VALUES = 3
    """Which few values a weight can have."""
    STORAGE = 4
    """How weights are stored, and on which grids the runtime computes."""
    INTERFACE = 5
    """What the model takes and answers."""

    @property
    def fixes(self) -> str:
        return (
            "nothing",
            "the shapes of the layers",
            "which weights are zero",
            "which values the weights can have",
            "how the weights are stored and computed with",
            "what the model takes and answers",
        )[self]


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
    synthetic: ClassVar[bool] = False
    """Made-up inputs stand in where there are no data; the report says so."""
    stage: ClassVar[Stage]
    """What it fixes: later steps must be able to keep that."""
    until: ClassVar[Stage]
    """It works on, and keeps, what steps of all stages up to this one have fixed; by default its own."""
    never_after: ClassVar[dict[str, str]] = {}
    """Steps that the stages would allow before this one, and why they cannot come there."""
    cannot_hold: ClassVar[dict[str, str]] = {}
    """Output formats that hold no result of this step, whatever the model, and what they cannot hold of it."""
    paper: ClassVar[str] = ""
    """Where the technique was published."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if hasattr(cls, "stage") and not hasattr(cls, "until"):
            cls.until = cls.stage

    def data_needed(self) -> Data:
        """The least data this step needs with these options."""
        return self.needs

    def changed(self) -> set[str]:
        """Options that differ from their defaults. Jobs keep all options filled in, so which were set says nothing."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}

    def reads_labels(self) -> bool:
        """Whether it needs labels with these options."""
        return self.data_needed() is Data.TRAIN

    def makes_up(self) -> bool:
        """Whether it works on made-up inputs where none are sent."""
        return self.synthetic and self.data_needed() is not Data.NONE and not self.reads_labels()

    def why_not_before(self, later: "Step") -> str | None:  # noqa: ARG002 - for those that override it
        """Why, with these options, a step cannot come anywhere later that the declarations would allow there."""
        return None

    def foresee(self, before: Forecast) -> Forecast:
        """What the sizes of a model are expected to be after this step."""
        return before if self.stage in (Stage.TRAINING, Stage.INTERFACE) else before.without(self.step)
