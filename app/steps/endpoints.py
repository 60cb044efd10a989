from typing import Annotated

from fastapi import APIRouter, Path

from app.auth import Authenticated
from app.problems import Invalid, NotFound, Unauthenticated, described
from app.steps import service
from app.steps.schemas import Catalogue, StepInfo

router = APIRouter(prefix="/v1/steps", tags=["steps"])


@router.get("", responses=described(Unauthenticated))
async def list_steps(_caller: Authenticated) -> Catalogue:
    """Every step that a recipe can have."""
    return service.catalogue()


@router.get("/{name}", responses=described(Unauthenticated, NotFound, Invalid))
async def get_step(_caller: Authenticated, name: Annotated[str, Path(max_length=64)]) -> StepInfo:
    """One step: its options, the data it needs, what may come before and after it."""
    return service.describe(name)
