from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import ids
from app.auth import Authenticated
from app.datasets import service
from app.datasets.schemas import Dataset
from app.problems import InUse, Invalid, NotFound, RangeNotSatisfiable, Unauthenticated, described
from app.web.bodies import FILE_BODY, FILE_CONTENT, UPLOAD_PROBLEMS
from app.web.fields import DatasetId, Name
from app.web.paging import Page, Paging
from app.web.prefer import Wait

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.post("", status_code=201, responses=UPLOAD_PROBLEMS, openapi_extra=FILE_BODY)
async def upload_dataset(
    request: Request,
    response: Response,
    caller: Authenticated,
    wait: Wait,
    filename: Annotated[Name, Query(description="its suffix says what it is: .npz, .safetensors or .parquet")],
    name: Annotated[Name | None, Query(description="the file's name without suffix by default")] = None,
) -> Dataset:
    """Upload data; the body is the file: arrays by name, the first axis of each counts the examples."""
    dataset = await service.upload(request, caller, filename, name, wait)
    response.headers["Location"] = f"/v1/datasets/{ids.show(ids.DATASET, dataset.id)}"
    return dataset


@router.get("", responses=described(Unauthenticated, Invalid))
async def list_datasets(caller: Authenticated, paging: Paging) -> Page[Dataset]:
    """All datasets, newest first."""
    return await service.page(caller, paging)


@router.get("/{dataset_id}", responses=described(Unauthenticated, NotFound, Invalid))
async def get_dataset(caller: Authenticated, wait: Wait, dataset_id: DatasetId) -> Dataset:
    """One dataset; with `Prefer: wait=n`, as soon as it is no longer `processing`."""
    return await service.get(caller, dataset_id, wait)


@router.head("/{dataset_id}/content", include_in_schema=False)
@router.get(
    "/{dataset_id}/content",
    response_class=Response,
    responses={**described(Unauthenticated, NotFound, Invalid, RangeNotSatisfiable), **FILE_CONTENT},
)
async def download_dataset(request: Request, caller: Authenticated, dataset_id: DatasetId) -> Response:
    """The bytes, with a strong ETag (the SHA-256), Range and conditional requests."""
    return await service.content(request, caller, dataset_id)


@router.delete("/{dataset_id}", status_code=204, responses=described(Unauthenticated, NotFound, Invalid, InUse))
async def delete_dataset(caller: Authenticated, dataset_id: DatasetId) -> None:
    """Remove a dataset and its bytes, unless a job still works on it."""
    await service.remove(caller, dataset_id)
