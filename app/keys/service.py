from uuid import UUID

from app import auth_keys
from app.context import Caller, Services
from app.db.tables import ApiKey
from app.keys.repository import KeyRepository, ensure_first_key
from app.keys.schemas import Key, NewKey
from app.problems import NotFound
from app.web.paging import Page, PageRequest

FIRST_TENANT = "default"


async def create(caller: Caller, name: str) -> NewKey:
    key = auth_keys.new_key()
    row = ApiKey(tenant_id=caller.tenant_id, name=name, **_stored(caller.services.settings.secret, key))
    async with caller.services.sessions() as session:
        session.add(row)
        await session.commit()
        await session.refresh(row)
    return NewKey(key=key, **shown(row).model_dump())


async def page(caller: Caller, request: PageRequest) -> Page[Key]:
    async with caller.services.sessions() as session:
        rows, token = await KeyRepository(session, caller.tenant_id).page(request)
    return Page(items=[shown(row) for row in rows], next_page_token=token)


async def revoke(caller: Caller, key_id: UUID) -> None:
    """Raises NotFound. Revoking twice changes nothing."""
    async with caller.services.sessions() as session:
        keys = KeyRepository(session, caller.tenant_id)
        if await keys.get(key_id) is None:
            raise NotFound("There is no such API key.")
        await keys.revoke(key_id)
        await session.commit()


async def create_first(services: Services) -> None:
    """The key that MODELPRESS_API_KEY names, for the tenant that an empty database begins with."""
    key = services.settings.api_key
    if key is None:
        return
    async with services.sessions() as session:
        values = {"name": "MODELPRESS_API_KEY", **_stored(services.settings.secret, key)}
        await ensure_first_key(session, FIRST_TENANT, values)
        await session.commit()


def _stored(secret: str, key: str) -> dict[str, str | bytes]:
    return {"prefix": auth_keys.prefix(key), "digest": auth_keys.digest(secret, key)}


def shown(row: ApiKey) -> Key:
    return Key.model_validate(row, from_attributes=True)
