from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import delete, exists, or_, select

from app.db.tables import Blob, Job, Model, ModelFile
from app.repository import TenantRepository


def holds_weights_alone(first: ModelFile) -> bool:
    """Of a result's first file; an upload of the same kind has an architecture beside it."""
    return first.format == "safetensors" and first.suffix == ".safetensors"


class ModelRepository(TenantRepository[Model]):
    table = Model

    async def files(self, model_ids: Iterable[UUID]) -> dict[UUID, list[tuple[ModelFile, Blob]]]:
        """Files of each model, in the order of their formats."""
        query = (
            select(ModelFile, Blob)
            .join(Blob, Blob.id == ModelFile.blob_id)
            .where(ModelFile.model_id.in_(list(model_ids)), Blob.tenant_id == self.tenant_id)
            .order_by(ModelFile.format)
        )
        found: dict[UUID, list[tuple[ModelFile, Blob]]] = {}
        for file, blob in await self.session.execute(query):
            found.setdefault(file.model_id, []).append((file, blob))
        return found

    async def inspection(self, model_id: UUID) -> UUID | None:
        """The job that reads, or has read, this upload."""
        query = select(Job.id).where(
            Job.model_id == model_id, Job.kind == "inspect_model", Job.tenant_id == self.tenant_id
        )
        return await self.session.scalar(query)

    async def is_used(self, model_id: UUID) -> bool:
        """Whether a job was given this model, as what to compress or as a teacher, or another model rests on it."""
        jobs = exists().where(Job.kind == "compress", or_(Job.model_id == model_id, Job.teacher_id == model_id))
        children = exists().where(or_(Model.parent_id == model_id, Model.architecture_id == model_id))
        return bool(await self.session.scalar(select(or_(jobs, children))))

    async def delete(self, model_id: UUID) -> None:
        """With its files' rows and the job that read it. Raises IntegrityError where something refers to it."""
        owned = Model.id == model_id, Model.tenant_id == self.tenant_id
        await self.session.execute(delete(Job).where(Job.model_id == model_id, Job.kind == "inspect_model"))
        await self.session.execute(delete(Model).where(*owned))

    async def several(self, model_ids: Iterable[UUID]) -> dict[UUID, Model]:
        rows = await self.session.scalars(self.owned().where(Model.id.in_(list(model_ids))))
        return {row.id: row for row in rows}
