"""The step catalogue, made from `modelpress.steps.STEPS` alone."""

from functools import cache
from inspect import cleandoc

from app.problems import NotFound
from app.steps.schemas import Catalogue, StepInfo
from modelpress.steps import STEPS, allowed_before


@cache
def catalogue() -> Catalogue:
    return Catalogue(items=[describe(name) for name in STEPS])


@cache
def describe(name: str) -> StepInfo:
    """Raises NotFound, with the names that there are."""
    if name not in STEPS:
        raise NotFound(f"There is no step {name!r}; there are: {', '.join(STEPS)}.")
    step = STEPS[name]
    return StepInfo(
        name=name,
        description=cleandoc(step.__doc__ or ""),
        data=step.needs,
        made_up=step.synthetic,
        stage=step.stage.name.lower(),
        fixes=step.stage.fixes,
        may_follow=allowed_before(step),
        may_precede=[other for other, later in STEPS.items() if name in allowed_before(later)],
        paper=step.paper,
        options=step.model_json_schema(),
    )
