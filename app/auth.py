"""Who is asking: an API key in `Authorization: Bearer` (or `X-API-Key`), looked up by its HMAC."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select, update

from app import auth_keys
from app.context import Caller, Context
from app.db.tables import ApiKey
from app.problems import Unauthenticated

bearer = HTTPBearer(auto_error=False, description="an API key: `mp_…`")
header = APIKeyHeader(name="X-API-Key", auto_error=False)

TOUCH_AFTER = timedelta(minutes=1)


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
        row = await session.scalar(select(ApiKey).where(ApiKey.digest == digest, ApiKey.revoked_at.is_(None)))
        if row is None:
            raise Unauthenticated("This API key is unknown or revoked.")
        now = datetime.now(UTC)
        if row.last_used_at is None or now - row.last_used_at > TOUCH_AFTER:
            await session.execute(update(ApiKey).where(ApiKey.id == row.id).values(last_used_at=now))
            await session.commit()
    return Caller(row.tenant_id, context)


Authenticated = Annotated[Caller, Depends(caller)]
