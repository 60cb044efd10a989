"""Finds what a job request refers to, and waits a moment for uploads that are still being read."""

import asyncio
from collections.abc import Iterator
from uuid import UUID

from app.context import Caller
from app.datasets.repository import DatasetRepository
from app.db.tables import Blob, Dataset, Model, ModelFile
from app.jobs.plan import Material, dataset_ids
from app.jobs.schemas import JobRequest
from app.jobs.waiting import wait_for_inspection
from app.models.repository import ModelRepository, holds_weights_alone
from app.problems import FieldError, Invalid, NotFound, NotReady, Rejected
from modelpress.models import DatasetSpec, ModelSpec

READING_SECONDS = 10.0
"""How long a POST waits for its model and data to be read."""


async def gather(caller: Caller, request: JobRequest) -> Material:
    """Raises NotFound, Rejected, or NotReady where reading takes longer than `READING_SECONDS`."""
    deadline = asyncio.get_running_loop().time() + READING_SECONDS
    while True:
        async with caller.services.sessions() as session:
            models, datasets = ModelRepository(session, caller.tenant_id), DatasetRepository(session, caller.tenant_id)
            found_models = await models.several({request.model, request.teacher or request.model})
            found_data = await datasets.several(dataset_ids(request).values())
            rows = dict(_resolved(request, found_models, found_data))
            waiting = next((pointer for pointer, row in rows.items() if row.status == "processing"), None)
            if waiting is None:
                files = await models.files(found_models)
                for pointer, model_id in (("/model", request.model), ("/teacher", request.teacher)):
                    if model_id is not None:
                        _check_whole(pointer, files.get(model_id))
                return _material(request, rows, files[request.model][0][1].size or 0)
            row = rows[waiting]
            reading = await (models if isinstance(row, Model) else datasets).inspection(row.id)
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0 or reading is None:
            raise NotReady.at(FieldError(pointer=waiting, detail="this is still being read; try again"))
        await wait_for_inspection(caller, reading, left)


def _resolved(
    request: JobRequest, models: dict[UUID, Model], datasets: dict[UUID, Dataset]
) -> Iterator[tuple[str, Model | Dataset]]:
    wanted: list[tuple[str, Model | Dataset | None]] = [("/model", models.get(request.model))]
    if request.teacher is not None:
        wanted.append(("/teacher", models.get(request.teacher)))
    wanted += [(f"/data/{use}", datasets.get(found)) for use, found in dataset_ids(request).items()]
    for pointer, row in wanted:
        if row is None:
            kind = "dataset" if pointer.startswith("/data") else "model"
            raise NotFound.at(FieldError(pointer=pointer, detail=f"there is no such {kind}"))
        if row.status == "rejected":
            reason = (row.error or {}).get("message", "it could not be read")
            raise Rejected.at(FieldError(pointer=pointer, detail=f"this was rejected: {reason}"))
        yield pointer, row


def _check_whole(pointer: str, files: list[tuple[ModelFile, Blob]] | None) -> None:
    if files is None:  # it has been removed since
        raise NotFound.at(FieldError(pointer=pointer, detail="there is no such model"))
    if holds_weights_alone(files[0][0]):
        detail = "this result was made as safetensors only, which are weights alone: make it as onnx too"
        raise Invalid.at(FieldError(pointer=pointer, detail=detail))


def _material(request: JobRequest, rows: dict[str, Model | Dataset], model_bytes: int) -> Material:
    return Material(
        model=ModelSpec.model_validate(rows["/model"].spec),
        model_bytes=model_bytes,
        teacher=ModelSpec.model_validate(rows["/teacher"].spec) if "/teacher" in rows else None,
        data={use: DatasetSpec.model_validate(rows[f"/data/{use}"].spec) for use in dataset_ids(request)},
    )
