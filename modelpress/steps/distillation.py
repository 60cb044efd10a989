from typing import ClassVar, Literal

from modelpress.steps.training import TaughtStep


class Distillation(TaughtStep):
    """Train the compressed graph to answer as the teacher does; labels are not needed."""

    step: Literal["distillation"] = "distillation"

    synthetic: ClassVar[bool] = True
    paper: ClassVar[str] = "Hinton et al., 2015, arXiv:1503.02531"
