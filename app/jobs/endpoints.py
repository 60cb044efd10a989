from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from app import ids
from app.auth import Authenticated
from app.jobs import events, service
from app.jobs.schemas import EventPage, Job, JobRequest, JobSummary, Plan
from app.problems import (
    IdempotencyKeyReused,
    Invalid,
    MalformedRequest,
    NotFound,
    NotReady,
    NotRetryable,
    Rejected,
    RequestInFlight,
    TooLarge,
    Unauthenticated,
    UnsupportedFormat,
    described,
)
from app.web.fields import JobId, Name, Text
from app.web.paging import Page, Paging
from app.web.prefer import Wait
from app.web.strict_json import StrictRoute
from modelpress.jobs import JobStatus
from modelpress.report import Report

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

CREATE_PROBLEMS = described(
    Unauthenticated,
    NotFound,
    Invalid,
    IdempotencyKeyReused,
    NotReady,
    Rejected,
    RequestInFlight,
    MalformedRequest,
    UnsupportedFormat,
    TooLarge,
)
EXISTING = described(Unauthenticated, NotFound, Invalid)
SSE = {"text/event-stream": {"schema": {"type": "string", "description": "Server-Sent Events, one a job event"}}}


@router.post("", status_code=202, responses={200: {"model": Plan, "description": "dry run"}, **CREATE_PROBLEMS})
async def create_job(
    response: Response,
    caller: Authenticated,
    wait: Wait,
    job: JobRequest,
    dry_run: Annotated[bool, Query(description="check everything and answer with the plan; create nothing")] = False,
    idempotency_key: Annotated[Name | None, Header(description="sent again, it gives the same job")] = None,
) -> Job | Plan:
    """Compress a model. All that can be known beforehand is checked now."""
    if dry_run:
        response.status_code = 200
        return await service.plan(caller, job)
    created = await service.create(caller, job, idempotency_key, wait)
    response.headers["Location"] = f"/v1/jobs/{ids.show(ids.JOB, created.id)}"
    response.headers["Retry-After"] = "1"
    return created


@router.get("", responses=described(Unauthenticated, Invalid))
async def list_jobs(
    caller: Authenticated,
    paging: Paging,
    status: JobStatus | None = None,
    label: Annotated[list[Text], Query(description="`name:value`; all of those given must be there")] = [],  # noqa: B006 - FastAPI copies it
) -> Page[JobSummary]:
    """All jobs, newest first, without their reports."""
    labels = dict(item.partition(":")[::2] for item in label)
    return await service.page(caller, paging, status, labels)


@router.get(
    "/{job_id}", response_model=Job, responses={**EXISTING, 304: {"description": "no news within `Prefer: wait`"}}
)
async def get_job(
    response: Response,
    caller: Authenticated,
    wait: Wait,
    job_id: JobId,
    if_none_match: Annotated[Text | None, Header(description="the ETag you know; waits for another one")] = None,
) -> Job | Response:
    """One job. With `Prefer: wait=n`, as soon as it has ended, or has changed from the version that you know."""
    known = if_none_match.removeprefix("W/").strip('"') if if_none_match else None
    job = await service.get(caller, job_id, wait, known)
    if job.version == known:
        return Response(status_code=304, headers={"ETag": f'"{job.version}"'})
    response.headers["ETag"] = f'"{job.version}"'
    return job


@router.post("/{job_id}/cancel", responses=EXISTING)
async def cancel_job(caller: Authenticated, job_id: JobId) -> Job:
    """Stop a job; one that has ended stays as it is."""
    return await service.cancel(caller, job_id)


@router.post("/{job_id}/retry", responses=described(Unauthenticated, NotFound, Invalid, NotRetryable))
async def retry_job(caller: Authenticated, job_id: JobId) -> Job:
    """Queue a failed or canceled job again; one that waits or runs stays as it is."""
    return await service.retry(caller, job_id)


@router.get("/{job_id}/events", response_model=EventPage, responses={**EXISTING, 200: {"content": SSE}})
async def list_events(
    request: Request,
    caller: Authenticated,
    job_id: JobId,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_event_id: Annotated[int, Header(ge=0, lt=2**63, description="where a stream goes on")] = 0,
) -> EventPage | Response:
    """What happened, oldest first: a page, or with `Accept: text/event-stream` a stream that ends with the job."""
    if "text/event-stream" not in request.headers.get("accept", ""):
        return await events.page(caller, job_id, after, page_size)
    stream = await events.opened(caller, job_id, max(after, last_event_id))
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, headers=headers, media_type="text/event-stream")


@router.get("/{job_id}/report", responses=EXISTING)
async def get_report(caller: Authenticated, job_id: JobId) -> Report:
    """What was measured on the stored bytes of original and result."""
    return await service.report(caller, job_id)


@router.get("/{job_id}/log", response_class=PlainTextResponse, responses=EXISTING)
async def get_log(caller: Authenticated, job_id: JobId) -> str:
    """The runner's bounded output of the last attempt."""
    return await service.log(caller, job_id)
