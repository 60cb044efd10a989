"""What a runner is given: the job's files out of the store, and its `job.json`."""

import errno
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Literal
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.db.tables import Dataset, Model
from app.db.tables import ModelFile as StoredFile
from app.storage.base import BlobStore
from modelpress.jobs import JobData, Recipe
from modelpress.run import Compress, InputFile, InspectDataset, InspectModel, Limits, ModelFile, RunError
from workers.ownership import Claim

Check = Callable[[], None]


class CannotStartError(Exception):
    """The run cannot begin; `error` says why."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


class Inputs:
    """Brings each file once, however many roles it plays. `check` is called between pieces and may raise."""

    def __init__(self, engine: Engine, store: BlobStore, claim: Claim, run_dir: Path, check: Check) -> None:
        self._engine = engine
        self._store = store
        self._claim = claim
        self._run_dir = run_dir
        self._check = check
        self._brought: dict[UUID, InputFile] = {}
        self.bytes = 0

    def spec(self, limits: Limits, sandbox: tuple[str, ...]) -> InspectModel | InspectDataset | Compress:
        """Raises CannotStartError."""
        claim = self._claim
        if claim.kind == "inspect_dataset":
            return InspectDataset(dataset=self._dataset(_given(claim.dataset_id)), limits=limits)
        if claim.kind == "inspect_model":
            return InspectModel(model=self._model(_given(claim.model_id)), limits=limits)
        try:
            request = Recipe.model_validate(claim.request)
            data = JobData[UUID].model_validate(claim.data)
        except ValidationError as error:
            message = f"This version cannot read the job's request ({error.error_count()} errors). Post it again."
            raise CannotStartError(RunError(code="invalid_request", message=message)) from error
        device: Literal["auto", "cuda"] = "cuda" if claim.queue == "gpu" else "auto"
        return Compress(
            model=self._model(_given(claim.model_id)),
            teacher=None if claim.teacher_id is None else self._model(claim.teacher_id),
            data=JobData[InputFile](
                train=self._optional(data.train),
                calibrate=self._optional(data.calibrate),
                evaluate=self._optional(data.evaluate),
            ),
            request=request,
            device=device,
            sandbox=sandbox,
            limits=limits,
        )

    def _optional(self, dataset_id: UUID | None) -> InputFile | None:
        return None if dataset_id is None else self._dataset(dataset_id)

    def _dataset(self, dataset_id: UUID) -> InputFile:
        query = select(Dataset.blob_id, Dataset.filename).where(
            Dataset.id == dataset_id, Dataset.tenant_id == self._claim.tenant_id
        )
        with Session(self._engine) as session:
            row = session.execute(query).one_or_none()
        if row is None:
            raise _gone("dataset")
        return self._bring(row[0], row[1])

    def _model(self, model_id: UUID) -> ModelFile:
        """The first of the model's files, as everywhere; beside weights alone, the file with their architecture."""
        query = (
            select(StoredFile.blob_id, Model.filename, StoredFile.suffix, Model.architecture_id)
            .join(Model, Model.id == StoredFile.model_id)
            .where(Model.id == model_id, Model.tenant_id == self._claim.tenant_id)
            .order_by(StoredFile.format)
        )
        with Session(self._engine) as session:
            row = session.execute(query).first()
        if row is None:
            raise _gone("model")
        blob_id, filename, suffix, architecture_id = row
        file = self._bring(blob_id, f"{PurePath(filename).stem}{suffix}")
        architecture = None if architecture_id is None else self._model(architecture_id)
        return ModelFile(
            path=file.path,
            filename=file.filename,
            architecture=architecture and InputFile(path=architecture.path, filename=architecture.filename),
        )

    def _bring(self, blob_id: UUID, filename: str) -> InputFile:
        if blob_id not in self._brought:
            path = f"in/{blob_id.hex}"
            try:
                self._copy(blob_id, self._run_dir / path)
            except KeyError as error:
                raise _gone("file") from error
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                    raise
                message = "The worker's disk is full. Free some space, or give workers a larger scratch folder."
                raise CannotStartError(RunError(code="disk_full", message=message, retryable=True)) from error
            self._brought[blob_id] = InputFile(path=path, filename=filename)
        return self._brought[blob_id]

    def _copy(self, blob_id: UUID, path: Path) -> None:
        with path.open("wb") as file:
            for piece in self._store.read(blob_id):
                file.write(piece)
                self.bytes += len(piece)
                self._check()


def _given(value: UUID | None) -> UUID:
    """The table's constraints see to it."""
    if value is None:
        raise TypeError("a job without what it is about")
    return value


def _gone(what: str) -> CannotStartError:
    message = f"A {what} that this job needs has been deleted. Upload it again and post the job anew."
    return CannotStartError(RunError(code="input_gone", message=message))
