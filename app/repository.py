"""The one place where rows meet tenants: a repository sees its own tenant's rows and no others."""

from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tables import ApiKey, Comparison, Dataset, Job, Model
from app.web.paging import PageRequest, page_token

R = TypeVar("R", ApiKey, Comparison, Dataset, Job, Model)


class TenantRepository(Generic[R]):
    table: ClassVar[Any]
    """The mapped class; every subclass names its own."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self.session = session
        self.tenant_id = tenant_id

    def owned(self) -> Select[R]:
        return select(self.table).where(self.table.tenant_id == self.tenant_id)

    async def get(self, row_id: UUID) -> R | None:
        return await self.session.scalar(self.owned().where(self.table.id == row_id))

    async def page(self, request: PageRequest, query: Select[R] | None = None) -> tuple[list[R], str | None]:
        """One page, and the token of the next one where there is one."""
        query = (self.owned() if query is None else query).order_by(self.table.id.desc()).limit(request.size + 1)
        if request.before is not None:
            query = query.where(self.table.id < request.before)
        rows = list(await self.session.scalars(query))
        more = len(rows) > request.size
        rows = rows[: request.size]
        return rows, page_token(rows[-1].id) if more else None
