from collections.abc import Collection, Iterable
from uuid import UUID

from sqlalchemy import delete, exists, or_, select

from app.db.tables import FINAL, Blob, Dataset, Job
from app.repository import TenantRepository

USES = ("train", "calibrate", "evaluate")


class DatasetRepository(TenantRepository[Dataset]):
    table = Dataset

    async def blobs(self, blob_ids: Iterable[UUID]) -> dict[UUID, Blob]:
        query = select(Blob).where(Blob.id.in_(list(blob_ids)), Blob.tenant_id == self.tenant_id)
        return {blob.id: blob for blob in await self.session.scalars(query)}

    async def inspection(self, dataset_id: UUID) -> UUID | None:
        """The job that reads, or has read, this upload."""
        query = select(Job.id).where(
            Job.dataset_id == dataset_id, Job.kind == "inspect_dataset", Job.tenant_id == self.tenant_id
        )
        return await self.session.scalar(query)

    async def is_used(self, dataset_id: UUID) -> bool:
        """Whether a job that has not ended yet works on this dataset."""
        uses = or_(*(Job.data[use].astext == str(dataset_id) for use in USES))
        waiting = exists().where(Job.tenant_id == self.tenant_id, Job.status.not_in(FINAL), uses)
        return bool(await self.session.scalar(select(waiting)))

    async def delete(self, dataset_id: UUID) -> None:
        """With the job that read it."""
        await self.session.execute(delete(Job).where(Job.dataset_id == dataset_id, Job.tenant_id == self.tenant_id))
        await self.session.execute(delete(Dataset).where(Dataset.id == dataset_id, Dataset.tenant_id == self.tenant_id))

    async def hold(self, dataset_ids: Collection[UUID]) -> bool:
        """Keep them from being removed until this transaction ends. False where one is gone."""
        held = self.owned().where(Dataset.id.in_(dataset_ids)).with_for_update(read=True, key_share=True)
        return len(list(await self.session.scalars(held))) == len(dataset_ids)

    async def lock(self, dataset_id: UUID) -> Dataset | None:
        """For its removal: waits for jobs that are just being given it."""
        return await self.session.scalar(self.owned().where(Dataset.id == dataset_id).with_for_update())

    async def several(self, dataset_ids: Iterable[UUID]) -> dict[UUID, Dataset]:
        rows = await self.session.scalars(self.owned().where(Dataset.id.in_(list(dataset_ids))))
        return {row.id: row for row in rows}
