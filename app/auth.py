"""Who is asking: an API key in `Authorization: Bearer` (or `X-API-Key`), looked up by its HMAC."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app import auth_keys
from app.context import Caller, Context
from app.keys.repository import find_valid_key, touch
from app.problems import Unauthenticated

bearer = HTTPBearer(auto_error=False, description="an API key: `mp_…`")
header = APIKeyHeader(name="X-API-Key", auto_error=False)

TOUCH_AFTER = timedelta(minutes=1)
"""`last_used_at` is no finer than this, so that not every request writes."""


async def caller(
    request: Request,
    context: Context,
    authorization: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
    api_key: Annotated[str | None, Security(header)],
) -> Caller:
    key = authorization.credentials if authorization else api_key
    if not key:
        wrong = "authorization" in request.headers
        raise Unauthenticated(
            "The Authorization header is not of the form `Bearer mp_…`."
            if wrong
            else "Send an API key: `Authorization: Bearer mp_…`."
        )
    digest = auth_keys.digest(context.settings.secret, key)
    async with context.sessions() as session:
        row = await find_valid_key(session, digest)
        if row is None:
            raise Unauthenticated("This API key is unknown or revoked.")
        if row.last_used_at is None or datetime.now(UTC) - row.last_used_at > TOUCH_AFTER:
            await touch(session, row.id)
            await session.commit()
    return Caller(row.tenant_id, context)


Authenticated = Annotated[Caller, Depends(caller)]
