from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tables import Job


class HealthRepository:
    """Sees all tenants, but only counts."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def check(self) -> None:
        """Raises unless the database answers and has been migrated."""
        await self.session.execute(text("SELECT FROM jobs, models, datasets, job_events LIMIT 0"))

    async def jobs_by_state(self) -> dict[tuple[str, str], int]:
        rows = await self.session.execute(select(Job.kind, Job.status, func.count()).group_by(Job.kind, Job.status))
        return {(kind, status): count for kind, status, count in rows}
