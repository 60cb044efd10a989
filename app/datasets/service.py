from pathlib import PurePosixPath
from uuid import UUID

from fastapi import Request, Response

from app.blobs import BlobRepository, remove_bytes
from app.context import Caller
from app.datasets.repository import DatasetRepository
from app.datasets.schemas import SUFFIXES, Dataset
from app.db.tables import Blob
from app.db.tables import Dataset as DatasetRow
from app.jobs.repository import JobRepository
from app.jobs.waiting import wait_for_inspection
from app.models.schemas import StoredError
from app.problems import InUse, NotFound
from app.web.download import file_response, stored_file
from app.web.paging import Page, PageRequest
from app.web.upload import check_filename, received
from modelpress.models import DatasetSpec


async def upload(request: Request, caller: Caller, filename: str, name: str | None, wait: float) -> Dataset:
    filename = check_filename(filename, SUFFIXES)
    async with received(request, caller) as blob, caller.services.sessions() as session:
        row = DatasetRow(tenant_id=caller.tenant_id, name=name or PurePosixPath(filename).stem, filename=filename)
        row.blob_id = await session.run_sync(blob.publish)
        session.add(row)
        await session.flush()
        job_id = await JobRepository(session, caller.tenant_id).add_inspection(dataset_id=row.id)
        await session.commit()
    caller.services.waker.wake("ingest", job_id)
    return await get(caller, row.id, wait)


async def get(caller: Caller, dataset_id: UUID, wait: float = 0) -> Dataset:
    """Raises NotFound. While the dataset is processing, waits for up to `wait` seconds."""
    async with caller.services.sessions() as session:
        datasets = DatasetRepository(session, caller.tenant_id)
        row = _existing(await datasets.get(dataset_id))
        inspection = await datasets.inspection(dataset_id) if wait and row.status == "processing" else None
        blobs = await datasets.blobs([row.blob_id])
    if inspection is None:
        return shown(row, _there(blobs, row.blob_id))
    await wait_for_inspection(caller, inspection, wait)
    return await get(caller, dataset_id)


async def page(caller: Caller, request: PageRequest) -> Page[Dataset]:
    async with caller.services.sessions() as session:
        datasets = DatasetRepository(session, caller.tenant_id)
        rows, token = await datasets.page(request)
        blobs = await datasets.blobs(row.blob_id for row in rows)
    return Page(items=[shown(row, blobs[row.blob_id]) for row in rows if row.blob_id in blobs], next_page_token=token)


async def content(request: Request, caller: Caller, dataset_id: UUID) -> Response:
    async with caller.services.sessions() as session:
        datasets = DatasetRepository(session, caller.tenant_id)
        row = _existing(await datasets.get(dataset_id))
        blob = _there(await datasets.blobs([row.blob_id]), row.blob_id)
    return await file_response(request, caller.services.blobs, stored_file(blob, row.filename))


async def remove(caller: Caller, dataset_id: UUID) -> None:
    """Raises NotFound, and InUse while it is being read or while a job works on it."""
    async with caller.services.sessions() as session:
        datasets = DatasetRepository(session, caller.tenant_id)
        row = _existing(await datasets.lock(dataset_id))
        if row.status == "processing":
            raise InUse("This dataset is being read; remove it when that has ended.")
        if await datasets.is_used(dataset_id):
            raise InUse("A job that has not ended yet works on this dataset.")
        await datasets.delete(dataset_id)
        removed = await BlobRepository(session).release([row.blob_id])
        await session.commit()
    await remove_bytes(caller.services.blobs, removed)


def _there(blobs: dict[UUID, Blob], blob_id: UUID) -> Blob:
    """A dataset that has been removed between two queries has no bytes."""
    if blob_id not in blobs:
        raise NotFound("There is no such dataset.")
    return blobs[blob_id]


def _existing(row: DatasetRow | None) -> DatasetRow:
    if row is None:
        raise NotFound("There is no such dataset.")
    return row


def shown(row: DatasetRow, blob: Blob) -> Dataset:
    spec = DatasetSpec.model_validate(row.spec) if row.spec else None
    return Dataset(
        id=row.id,
        name=row.name,
        filename=row.filename,
        status=row.status,
        error=StoredError.model_validate(row.error) if row.error else None,
        size_bytes=blob.size or 0,
        sha256=(blob.sha256 or b"").hex(),
        examples=spec.examples if spec else None,
        arrays=spec.arrays if spec else (),
        created_at=row.created_at,
    )
