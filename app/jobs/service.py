from uuid import UUID

from psycopg.errors import ForeignKeyViolation
from sqlalchemy.exc import IntegrityError

from app.context import Caller
from app.datasets.repository import DatasetRepository
from app.db.tables import FINAL
from app.db.tables import Job as JobRow
from app.jobs.auto import resolved
from app.jobs.material import gather
from app.jobs.plan import dataset_ids, make_plan
from app.jobs.repository import JobRepository, Outcome
from app.jobs.schemas import Job, JobError, JobRequest, JobResult, JobSummary, Plan
from app.jobs.waiting import wait_until
from app.problems import IdempotencyKeyReused, NotFound, NotRetryable, RequestInFlight, problem_type
from app.web.paging import Page, PageRequest
from modelpress.jobs import Recipe
from modelpress.report import Report


async def plan(caller: Caller, request: JobRequest) -> Plan:
    material = await gather(caller, request)
    return make_plan(resolved(request, material.model), material)


async def create(caller: Caller, request: JobRequest, idempotency_key: str | None, wait: float) -> Job:
    """Raises what `gather` and `make_plan` raise; RequestInFlight or IdempotencyKeyReused for a key that is known."""
    if idempotency_key is None:
        return await get(caller, await _insert(caller, request, None), wait)
    in_flight, mark = caller.services.in_flight, (caller.tenant_id, idempotency_key)
    if mark in in_flight:
        raise RequestInFlight("Another request with this Idempotency-Key has not ended yet.")
    in_flight.add(mark)
    try:
        job_id = await _replayed(caller, request, idempotency_key)
        if job_id is None:
            job_id = await _insert(caller, request, idempotency_key)
    except IntegrityError:
        # another process was given the same key at the same time
        job_id = await _replayed(caller, request, idempotency_key)
        if job_id is None:
            raise
    finally:
        in_flight.discard(mark)
    return await get(caller, job_id, wait)


async def _replayed(caller: Caller, request: JobRequest, idempotency_key: str) -> UUID | None:
    async with caller.services.sessions() as session:
        row = await JobRepository(session, caller.tenant_id).by_idempotency_key(idempotency_key)
    if row is not None and row.request_digest != request.digest():
        raise IdempotencyKeyReused("This Idempotency-Key was sent before with another body; use a new one.")
    return row.id if row is not None else None


async def _insert(caller: Caller, request: JobRequest, idempotency_key: str | None) -> UUID:
    planned = await plan(caller, request)
    row = JobRow(
        kind="compress",
        queue=request.queue,
        model_id=request.model,
        teacher_id=request.teacher,
        data={use: str(dataset_id) for use, dataset_id in dataset_ids(request).items()},
        request=request.model_copy(update={"recipe": planned.resolved_recipe}).stored_recipe(),
        labels=request.labels,
        deadline_seconds=request.budget.seconds,
        idempotency_key=idempotency_key,
        request_digest=request.digest() if idempotency_key else None,
    )
    async with caller.services.sessions() as session:
        if not await DatasetRepository(session, caller.tenant_id).hold(set(dataset_ids(request).values())):
            raise NotFound("A dataset of this job has just been removed.")
        try:
            await JobRepository(session, caller.tenant_id).add(row)
        except IntegrityError as error:
            if isinstance(error.orig, ForeignKeyViolation):
                raise NotFound("A model of this job has just been removed.") from None
            raise
        await session.commit()
    caller.services.waker.wake(row.queue, row.id)
    return row.id


async def get(caller: Caller, job_id: UUID, wait: float = 0, known: str | None = None) -> Job:
    """Raises NotFound. Waits for up to `wait` seconds: for the end, or for another version than `known`."""

    def done(job: Job) -> bool:
        return job.status in FINAL or (known is not None and job.version != known)

    async def look() -> Job:
        async with caller.services.sessions() as session:
            jobs = JobRepository(session, caller.tenant_id)
            row = await jobs.with_report(job_id)
            if row is None:
                raise NotFound("There is no such job.")
            outcome = (await jobs.outcomes([job_id]))[job_id]
        summary = shown(row, outcome).model_dump()
        return Job(**summary, report=Report.model_validate(row.report) if row.report else None).versioned()

    return await wait_until(caller, job_id, wait, look, done)


async def page(caller: Caller, request: PageRequest, status: str | None, labels: dict[str, str]) -> Page[JobSummary]:
    async with caller.services.sessions() as session:
        jobs = JobRepository(session, caller.tenant_id)
        rows, token = await jobs.page(request, jobs.selected(status, labels))
        outcomes = await jobs.outcomes(row.id for row in rows)
    return Page(items=[shown(row, outcomes[row.id]) for row in rows], next_page_token=token)


async def cancel(caller: Caller, job_id: UUID) -> Job:
    await get(caller, job_id)
    async with caller.services.sessions() as session:
        await JobRepository(session, caller.tenant_id).cancel(job_id)
        await session.commit()
    return await get(caller, job_id)


async def retry(caller: Caller, job_id: UUID) -> Job:
    """Raises NotRetryable for a job that succeeded, or whose data has been removed."""
    job = await get(caller, job_id)
    if job.status == "succeeded":
        raise NotRetryable("This job succeeded; post a new one to run it again.")
    async with caller.services.sessions() as session:
        wanted = {found for found in (job.data.train, job.data.calibrate, job.data.evaluate) if found}
        if not await DatasetRepository(session, caller.tenant_id).hold(wanted):
            raise NotRetryable("A dataset of this job has been removed.")
        queued = await JobRepository(session, caller.tenant_id).retry(job_id)
        await session.commit()
    if queued:
        caller.services.waker.wake(job.queue, job_id)
    return await get(caller, job_id)


async def report(caller: Caller, job_id: UUID) -> Report:
    job = await get(caller, job_id)
    if job.report is None:
        raise NotFound(f"This job has no report: it is {job.status}.")
    return job.report


async def log(caller: Caller, job_id: UUID) -> str:
    async with caller.services.sessions() as session:
        jobs = JobRepository(session, caller.tenant_id)
        if await jobs.get(job_id) is None:
            raise NotFound("There is no such job.")
        return await jobs.log(job_id) or ""


def shown(row: JobRow, outcome: Outcome) -> JobSummary:
    recipe = Recipe.model_validate(row.request)
    result = None
    if outcome.model_id and outcome.verdict:
        result = JobResult(model_id=outcome.model_id, verdict=outcome.verdict, targets_met=outcome.targets_met)
    return JobSummary.model_validate(
        {
            "id": row.id,
            "status": row.status,
            "model": row.model_id,
            "teacher": row.teacher_id,
            "data": {use: UUID(dataset_id) for use, dataset_id in row.data.items()},
            "queue": row.queue,
            "progress": row.progress and row.progress | ({"fraction": 1.0} if row.status == "succeeded" else {}),
            "attempt": row.attempt,
            "resolved_recipe": recipe.recipe,
            "request": recipe,
            "result": result,
            "error": _error(row),
            "warnings": row.warnings,
            "environment": row.environment,
            "created_at": row.created_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
            "labels": row.labels,
        }
    )


def _error(row: JobRow) -> JobError | None:
    if row.error is None:
        return None
    return JobError(
        type=problem_type(row.error["code"]),
        code=row.error["code"],
        detail=row.error["message"],
        retryable=row.error.get("retryable", False),
    )
