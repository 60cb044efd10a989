from fastapi import APIRouter, Response

from app import ids
from app.auth import Authenticated
from app.comparisons import service
from app.comparisons.schemas import Comparison, ComparisonRequest
from app.problems import Invalid, MalformedRequest, NotFound, TooLarge, Unauthenticated, UnsupportedFormat, described
from app.web.fields import ComparisonId
from app.web.paging import Page, Paging
from app.web.strict_json import StrictRoute

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"], route_class=StrictRoute)


@router.post(
    "",
    status_code=201,
    responses=described(Unauthenticated, NotFound, Invalid, MalformedRequest, UnsupportedFormat, TooLarge),
)
async def create_comparison(response: Response, caller: Authenticated, comparison: ComparisonRequest) -> Comparison:
    """Put results side by side, from what their reports measured; nothing is measured anew."""
    created = await service.create(caller, comparison)
    response.headers["Location"] = f"/v1/comparisons/{ids.show(ids.COMPARISON, created.id)}"
    return created


@router.get("", responses=described(Unauthenticated, Invalid))
async def list_comparisons(caller: Authenticated, paging: Paging) -> Page[Comparison]:
    """All comparisons, newest first."""
    return await service.page(caller, paging)


@router.get("/{comparison_id}", responses=described(Unauthenticated, NotFound, Invalid))
async def get_comparison(caller: Authenticated, comparison_id: ComparisonId) -> Comparison:
    """One comparison, as it was when it was made."""
    return await service.get(caller, comparison_id)
