from typing import Any, Literal

from pydantic import BaseModel, Field

from modelpress.steps import Data


class StepInfo(BaseModel):
    name: str
    description: str
    data: Data = Field(description="the least data it needs with its default options; more always does better")
    made_up: bool = Field(description="made-up inputs stand in where the data it needs is not sent")
    stage: Literal["training", "structure", "zeros", "values", "storage", "interface"]
    fixes: str = Field(description="what it fixes, in words: steps that would change that again come before it")
    may_follow: list[str] = Field(description="steps that may stand anywhere before it in a recipe")
    may_precede: list[str] = Field(description="steps that may stand anywhere after it in a recipe")
    paper: str
    options: dict[str, Any] = Field(description="JSON Schema of the step as it stands in a recipe")


class Catalogue(BaseModel):
    items: list[StepInfo]
