from fastapi import APIRouter

from app.auth import Authenticated
from app.keys import service
from app.keys.schemas import Key, KeyRequest, NewKey
from app.problems import Invalid, MalformedRequest, NotFound, TooLarge, Unauthenticated, UnsupportedFormat, described
from app.web.fields import KeyId
from app.web.paging import Page, Paging
from app.web.strict_json import StrictRoute

router = APIRouter(prefix="/v1/api-keys", tags=["API keys"], route_class=StrictRoute)


@router.post(
    "", status_code=201, responses=described(Unauthenticated, Invalid, MalformedRequest, UnsupportedFormat, TooLarge)
)
async def create_key(caller: Authenticated, key: KeyRequest) -> NewKey:
    """A new key for your tenant. The answer is the only place where it is shown."""
    return await service.create(caller, key.name)


@router.get("", responses=described(Unauthenticated, Invalid))
async def list_keys(caller: Authenticated, paging: Paging) -> Page[Key]:
    """All keys of your tenant, newest first, revoked ones too."""
    return await service.page(caller, paging)


@router.delete("/{key_id}", status_code=204, responses=described(Unauthenticated, NotFound, Invalid))
async def revoke_key(caller: Authenticated, key_id: KeyId) -> None:
    """Revoke a key, at once and for good."""
    await service.revoke(caller, key_id)
