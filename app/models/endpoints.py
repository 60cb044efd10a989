from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import ids
from app.auth import Authenticated
from app.models import service
from app.models.schemas import Model
from app.problems import (
    InUse,
    Invalid,
    NotFound,
    NotReady,
    RangeNotSatisfiable,
    Rejected,
    Unauthenticated,
    described,
)
from app.web.bodies import FILE_BODY, FILE_CONTENT, OF_UPLOADS
from app.web.fields import ModelId, Name, Text
from app.web.paging import Page, Paging
from app.web.prefer import Wait

router = APIRouter(prefix="/v1/models", tags=["models"])

UPLOAD_PROBLEMS = described(*OF_UPLOADS, NotFound, NotReady, Rejected)


@router.post("", status_code=201, responses=UPLOAD_PROBLEMS, openapi_extra=FILE_BODY)
async def upload_model(
    request: Request,
    response: Response,
    caller: Authenticated,
    wait: Wait,
    filename: Annotated[Name, Query(description="what the file is called; what is in it is told by its content")],
    name: Annotated[Name | None, Query(description="the file's name without suffix by default")] = None,
    architecture: Annotated[ModelId | None, Query(description="for weights alone: a model with their layers")] = None,
) -> Model:
    """Upload a model; the body is the file. It is read in the background: `processing`, then `ready` or `rejected`.

    `.onnx`; `.pt2`; `.packed`; TorchScript as `.pt`; a Hugging Face folder, or an ONNX file with its external data,
    as `.zip`; a state dict as `.pt`, `.pth` or `.safetensors`, together with `architecture`.
    """
    model = await service.upload(request, caller, filename, name, architecture, wait)
    response.headers["Location"] = f"/v1/models/{ids.show(ids.MODEL, model.id)}"
    return model


@router.get("", responses=described(Unauthenticated, Invalid))
async def list_models(caller: Authenticated, paging: Paging) -> Page[Model]:
    """All models, newest first: uploads and results."""
    return await service.page(caller, paging)


@router.get("/{model_id}", responses=described(Unauthenticated, NotFound, Invalid))
async def get_model(caller: Authenticated, wait: Wait, model_id: ModelId) -> Model:
    """One model; with `Prefer: wait=n`, as soon as it is no longer `processing`."""
    return await service.get(caller, model_id, wait)


@router.head("/{model_id}/content", include_in_schema=False)
@router.get(
    "/{model_id}/content",
    response_class=Response,
    responses={**described(Unauthenticated, NotFound, Invalid, RangeNotSatisfiable), **FILE_CONTENT},
)
async def download_model(
    request: Request,
    caller: Authenticated,
    model_id: ModelId,
    format: Annotated[Text | None, Query(description="the model's first file by default")] = None,  # noqa: A002 - the parameter's name in the API
) -> Response:
    """The bytes, with a strong ETag (the SHA-256), Range and conditional requests."""
    return await service.content(request, caller, model_id, format)


@router.delete("/{model_id}", status_code=204, responses=described(Unauthenticated, NotFound, Invalid, InUse))
async def delete_model(caller: Authenticated, model_id: ModelId) -> None:
    """Remove a model and its bytes, unless a job or another model refers to it."""
    await service.remove(caller, model_id)
