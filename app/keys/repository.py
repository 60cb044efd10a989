from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tables import ApiKey, Tenant
from app.repository import TenantRepository


class KeyRepository(TenantRepository[ApiKey]):
    table = ApiKey

    async def revoke(self, key_id: UUID) -> None:
        await self.session.execute(
            update(ApiKey)
            .where(ApiKey.id == key_id, ApiKey.tenant_id == self.tenant_id, ApiKey.revoked_at.is_(None))
            .values(revoked_at=func.now())
        )


async def find_valid_key(session: AsyncSession, digest: bytes) -> ApiKey | None:
    """Of whatever tenant: it is the key that says which."""
    return await session.scalar(select(ApiKey).where(ApiKey.digest == digest, ApiKey.revoked_at.is_(None)))


async def touch(session: AsyncSession, key_id: UUID) -> None:
    await session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=func.now()))


async def ensure_first_key(session: AsyncSession, tenant_name: str, values: dict[str, Any]) -> None:
    """Many processes may start at once: each row is made by one of them and found by the others."""
    await session.execute(insert(Tenant).values(name=tenant_name).on_conflict_do_nothing())
    tenant_id = await session.scalar(select(Tenant.id).where(Tenant.name == tenant_name))
    await session.execute(insert(ApiKey).values(tenant_id=tenant_id, **values).on_conflict_do_nothing())
