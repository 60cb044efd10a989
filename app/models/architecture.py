"""Weights that are uploaded alone belong to the architecture of another model, which has been read already."""

from uuid import UUID

from app.context import Caller
from app.jobs.waiting import wait_for_inspection
from app.models.repository import ModelRepository, holds_weights_alone
from app.models.schemas import WEIGHTS
from app.problems import FieldError, Invalid, NotFound, NotReady, Rejected

POINTER = "query:architecture"
READING_SECONDS = 10.0
"""How long an upload waits for the architecture to be read."""


async def architecture_for(caller: Caller, filename: str, given: UUID | None) -> UUID | None:
    """The model that stands for the architecture: where the given one is weights on another, that other one.

    Raises Invalid where file and architecture do not go together; NotFound, NotReady or Rejected.
    """
    if given is None:
        if filename.lower().endswith(".safetensors"):
            detail = "weights alone need a model with their architecture; or send a Hugging Face folder, zipped"
            raise Invalid.at(_at(detail))
        return None
    if not filename.lower().endswith(WEIGHTS):
        detail = f"goes with weights alone ({', '.join(WEIGHTS)}); this file has an architecture of its own"
        raise Invalid.at(_at(detail))
    async with caller.services.sessions() as session:
        models = ModelRepository(session, caller.tenant_id)
        row, files = await models.get(given), await models.files([given])
        reading = await models.inspection(given) if row is not None and row.status == "processing" else None
    if reading is not None:
        await wait_for_inspection(caller, reading, READING_SECONDS)
        async with caller.services.sessions() as session:
            models = ModelRepository(session, caller.tenant_id)
            row, files = await models.get(given), await models.files([given])
    if row is None or given not in files:
        raise no_architecture()
    if row.status == "processing":
        raise NotReady.at(_at("it is still being read; try again"))
    if row.status == "rejected":
        raise Rejected.at(_at("it was rejected, so that it has no architecture to give"))
    if holds_weights_alone(files[given][0][0]):
        raise Invalid.at(_at("this model is weights alone itself, so that it has no architecture to give"))
    return row.architecture_id or row.id


def no_architecture() -> NotFound:
    return NotFound.at(_at("there is no such model"))


def _at(detail: str) -> FieldError:
    return FieldError(pointer=POINTER, detail=detail)
