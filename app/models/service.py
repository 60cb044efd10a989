from pathlib import PurePosixPath
from uuid import UUID

from fastapi import Request, Response
from sqlalchemy.exc import IntegrityError

from app.blobs import BlobRepository, remove_bytes
from app.context import Caller
from app.db.tables import Blob
from app.db.tables import Model as ModelRow
from app.db.tables import ModelFile as FileRow
from app.jobs.repository import JobRepository
from app.jobs.waiting import wait_for_inspection
from app.models.architecture import architecture_for, no_architecture
from app.models.repository import ModelRepository
from app.models.schemas import SUFFIXES, Model, ModelFile, StoredError
from app.problems import InUse, NotFound
from app.web.download import file_response, stored_file
from app.web.paging import Page, PageRequest
from app.web.upload import check_filename, received
from modelpress.models import ModelSpec

Files = list[tuple[FileRow, Blob]]


async def upload(
    request: Request, caller: Caller, filename: str, name: str | None, architecture: UUID | None, wait: float
) -> Model:
    """Raises what `check_filename`, `architecture_for` and `received` raise."""
    filename = check_filename(filename, SUFFIXES)
    architecture_id = await architecture_for(caller, filename, architecture)
    async with received(request, caller) as blob, caller.services.sessions() as session:
        path = PurePosixPath(filename)
        row = ModelRow(
            tenant_id=caller.tenant_id, name=name or path.stem, filename=filename, architecture_id=architecture_id
        )
        session.add(row)
        try:
            await session.flush()
        except IntegrityError:
            raise no_architecture() from None  # it was removed while the weights arrived
        blob_id = await session.run_sync(blob.publish)
        session.add(FileRow(model_id=row.id, format="upload", suffix=path.suffix, blob_id=blob_id))
        job_id = await JobRepository(session, caller.tenant_id).add_inspection(model_id=row.id)
        await session.commit()
    caller.services.waker.wake("ingest", job_id)
    return await get(caller, row.id, wait)


async def get(caller: Caller, model_id: UUID, wait: float = 0) -> Model:
    """Raises NotFound. While the model is processing, waits for up to `wait` seconds."""
    async with caller.services.sessions() as session:
        models = ModelRepository(session, caller.tenant_id)
        row = _existing(await models.get(model_id))
        inspection = await models.inspection(model_id) if wait and row.status == "processing" else None
        files = await models.files([model_id])
    if inspection is None:
        return shown(row, _there(files, model_id))
    await wait_for_inspection(caller, inspection, wait)
    return await get(caller, model_id)


async def page(caller: Caller, request: PageRequest) -> Page[Model]:
    async with caller.services.sessions() as session:
        models = ModelRepository(session, caller.tenant_id)
        rows, token = await models.page(request)
        files = await models.files(row.id for row in rows)
    return Page(items=[shown(row, files[row.id]) for row in rows if row.id in files], next_page_token=token)


async def content(request: Request, caller: Caller, model_id: UUID, format_: str | None) -> Response:
    async with caller.services.sessions() as session:
        models = ModelRepository(session, caller.tenant_id)
        row = _existing(await models.get(model_id))
        files = _there(await models.files([model_id]), model_id)
    found = [(file, blob) for file, blob in files if format_ in {None, file.format}]
    if not found:
        raise NotFound(f"This model has no {format_} file; it has: {', '.join(file.format for file, _ in files)}.")
    file, blob = found[0]
    return await file_response(request, caller.services.blobs, stored_file(blob, _filename(row, file)))


async def remove(caller: Caller, model_id: UUID) -> None:
    """Raises NotFound, and InUse while it is being read or while a job or another model refers to it."""
    async with caller.services.sessions() as session:
        models, blobs = ModelRepository(session, caller.tenant_id), BlobRepository(session)
        row = _existing(await models.get(model_id))
        if row.status == "processing":
            raise InUse("This model is being read; remove it when that has ended.")
        used = InUse("A job was given this model, or another model was made from it or has its architecture.")
        if await models.is_used(model_id):
            raise used
        files = _there(await models.files([model_id]), model_id)
        try:
            await models.delete(model_id)
        except IntegrityError:
            raise used from None  # a job came in between
        removed = await blobs.release([blob.id for _, blob in files])
        await session.commit()
    await remove_bytes(caller.services.blobs, removed)


def _filename(row: ModelRow, file: FileRow) -> str:
    return f"{PurePosixPath(row.filename).stem}{file.suffix}"


def _there(files: dict[UUID, Files], model_id: UUID) -> Files:
    """A model that has been removed between two queries has no files."""
    if model_id not in files:
        raise NotFound("There is no such model.")
    return files[model_id]


def _existing(row: ModelRow | None) -> ModelRow:
    if row is None:
        raise NotFound("There is no such model.")
    return row


def shown(row: ModelRow, files: Files) -> Model:
    spec = ModelSpec.model_validate(row.spec) if row.spec else None
    listed = [
        ModelFile(
            format=file.format,
            filename=_filename(row, file),
            size_bytes=blob.size or 0,
            sha256=(blob.sha256 or b"").hex(),
        )
        for file, blob in files
    ]
    first = listed[0]
    return Model(
        id=row.id,
        name=row.name,
        filename=row.filename,
        status=row.status,
        error=StoredError.model_validate(row.error) if row.error else None,
        format=None if first.format == "upload" else first.format,
        size_bytes=first.size_bytes,
        sha256=first.sha256,
        signature=spec.signature if spec else None,
        stats=spec.stats if spec else None,
        notes=spec.notes if spec else (),
        architecture_id=row.architecture_id,
        parent_id=row.parent_id,
        job_id=row.job_id,
        files=listed,
        created_at=row.created_at,
    )
