from uuid import UUID

from app.comparisons.repository import ComparisonRepository
from app.comparisons.schemas import Baseline, Candidate, Comparison, ComparisonRequest, ComparisonResult
from app.comparisons.table import notes, with_front
from app.context import Caller
from app.db.tables import Comparison as ComparisonRow
from app.db.tables import Job, Model
from app.jobs.repository import JobRepository
from app.models.repository import ModelRepository
from app.problems import FieldError, Invalid, NotFound
from app.web.paging import Page, PageRequest
from modelpress.report import Report


async def create(caller: Caller, request: ComparisonRequest) -> Comparison:
    """Raises NotFound for models that do not exist, and Invalid for candidates that were not made from the baseline."""
    async with caller.services.sessions() as session:
        found = await ModelRepository(session, caller.tenant_id).several({request.baseline, *request.candidates})
        models = _candidates(request, found)
        made_by = await JobRepository(session, caller.tenant_id).with_reports(m.job_id for m in models if m.job_id)
        results = [(model, made_by[model.job_id]) for model in models if model.job_id]
        result = _compare(found[request.baseline], results)
        row = ComparisonRow(
            tenant_id=caller.tenant_id,
            request=request.model_dump(mode="json"),
            result=result.model_dump(mode="json"),
        )
        session.add(row)
        await session.commit()
        await session.refresh(row)
    return shown(row)


async def get(caller: Caller, comparison_id: UUID) -> Comparison:
    async with caller.services.sessions() as session:
        row = await ComparisonRepository(session, caller.tenant_id).get(comparison_id)
    if row is None:
        raise NotFound("There is no such comparison.")
    return shown(row)


async def page(caller: Caller, request: PageRequest) -> Page[Comparison]:
    async with caller.services.sessions() as session:
        rows, token = await ComparisonRepository(session, caller.tenant_id).page(request)
    return Page(items=[shown(row) for row in rows], next_page_token=token)


def _candidates(request: ComparisonRequest, found: dict[UUID, Model]) -> list[Model]:
    wanted = {"/baseline": request.baseline}
    wanted |= {f"/candidates/{index}": candidate for index, candidate in enumerate(request.candidates)}
    missing = [
        FieldError(pointer=pointer, detail="there is no such model")
        for pointer, id_ in wanted.items()
        if id_ not in found
    ]
    if missing:
        raise NotFound.at(*missing)
    candidates = {pointer: found[id_] for pointer, id_ in wanted.items() if pointer != "/baseline"}
    strangers = [
        FieldError(pointer=pointer, detail="this model is no result of a job on the baseline")
        for pointer, model in candidates.items()
        if model.parent_id != request.baseline
    ]
    if strangers:
        raise Invalid.at(*strangers)
    return list({model.id: model for model in candidates.values()}.values())


def _compare(baseline: Model, results: list[tuple[Model, Job]]) -> ComparisonResult:
    reports = [Report.model_validate(job.report) for _, job in results]
    rows = [_row(model, job, report) for (model, job), report in zip(results, reports, strict=True)]
    size = reports[0].size[0]
    candidates, axes = with_front(rows, size.bytes)
    return ComparisonResult(
        baseline=Baseline(model_id=baseline.id, name=baseline.name, size=size),
        candidates=candidates,
        axes=axes,
        notes=notes(reports, [job.data.get("evaluate") for _, job in results]),
    )


def _row(model: Model, job: Job, report: Report) -> Candidate:
    return Candidate(
        model_id=model.id,
        name=model.name,
        job_id=job.id,
        steps=[step["step"] for step in job.request["recipe"]],
        size=report.size[1],
        size_ratio=report.size_ratio,
        latency=report.latency,
        traffic=report.traffic,
        quality=report.quality,
        agreement=report.agreement[0] if report.agreement else None,
        verdict=report.verdict,
        targets_met=report.targets_met,
    )


def shown(row: ComparisonRow) -> Comparison:
    return Comparison(id=row.id, created_at=row.created_at, **row.result)
