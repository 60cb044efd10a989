"""`modelpress models`, `datasets`, `jobs`: what is there, and what can be done with it."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from modelpress.cli.connect import ERROR, connected
from modelpress.cli.output import Json, err, moment, out, print_json, size, table
from modelpress.cli.progress import display, follow
from modelpress.cli.report import render
from modelpress.client import Job
from modelpress.jobs import JobStatus

Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="how many, newest first")]
JobId = Annotated[str, typer.Argument(help="id of a job (job_…)")]

models = typer.Typer(no_args_is_help=True, help="Models: uploads and results.")
datasets = typer.Typer(no_args_is_help=True, help="Datasets.")
jobs = typer.Typer(no_args_is_help=True, help="Jobs: see, stop, repeat.")


@models.command("list")
def list_models(context: typer.Context, limit: Limit = 20, as_json: Json = False) -> None:
    """What is there, newest first."""
    with connected(context) as client:
        found = list(islice(client.iterate_models(), limit))
    if as_json:
        return print_json(found)
    shown = table("id", "name", "status", "format", "size", "parameters", "made")
    for model in found:
        parameters = f"{model.stats.parameters:,}" if model.stats else ""
        made = moment(model.created_at)
        formats = "" if model.format is None else ", ".join(file.format for file in model.files)
        shown.add_row(model.id, model.name, model.status, formats, size(model.size_bytes), parameters, made)
    return out.print(shown)


@models.command("show")
def show_model(context: typer.Context, model_id: str) -> None:
    """All that is known of a model, as JSON."""
    with connected(context) as client:
        print_json(client.get_model(model_id))


@models.command("upload")
def upload_model(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="a file, or the folder of a model in several files")],
    name: str | None = None,
    architecture: Annotated[
        str | None, typer.Option(help="for weights alone: a model with their layers (mdl_…)")
    ] = None,
) -> None:
    """Upload a model and wait until it has been read; prints its id."""
    with connected(context) as client:
        out.print(client.wait(client.upload_model(path, name, architecture=architecture)).id)


@models.command("delete")
def delete_model(context: typer.Context, model_id: str) -> None:
    """Remove a model and its bytes, unless a job or another model refers to it."""
    with connected(context) as client:
        client.delete_model(model_id)


@datasets.command("list")
def list_datasets(context: typer.Context, limit: Limit = 20, as_json: Json = False) -> None:
    """What is there, newest first."""
    with connected(context) as client:
        found = list(islice(client.iterate_datasets(), limit))
    if as_json:
        return print_json(found)
    shown = table("id", "name", "status", "examples", "size", "made")
    for dataset in found:
        examples = "" if dataset.examples is None else f"{dataset.examples:,}"
        shown.add_row(
            dataset.id, dataset.name, dataset.status, examples, size(dataset.size_bytes), moment(dataset.created_at)
        )
    return out.print(shown)


@datasets.command("show")
def show_dataset(context: typer.Context, dataset_id: str) -> None:
    """All that is known of a dataset, as JSON."""
    with connected(context) as client:
        print_json(client.get_dataset(dataset_id))


@datasets.command("upload")
def upload_dataset(context: typer.Context, path: Path, name: str | None = None) -> None:
    """Upload a dataset and wait until it has been read; prints its id."""
    with connected(context) as client:
        out.print(client.wait(client.upload_dataset(path, name)).id)


@datasets.command("delete")
def delete_dataset(context: typer.Context, dataset_id: str) -> None:
    """Remove a dataset and its bytes, unless a waiting or running job needs it."""
    with connected(context) as client:
        client.delete_dataset(dataset_id)


@jobs.command("list")
def list_jobs(context: typer.Context, limit: Limit = 20, as_json: Json = False) -> None:
    """Jobs, newest first."""
    with connected(context) as client:
        found = list(islice(client.iterate_jobs(), limit))
    if as_json:
        return print_json(found)
    shown = table("id", "status", "verdict", "recipe", "made")
    for job in found:
        verdict = job.result.verdict.value if job.result else ""
        shown.add_row(job.id, job.status.value, verdict, steps_of(job), moment(job.created_at))
    return out.print(shown)


@jobs.command("show")
def show_job(context: typer.Context, job_id: JobId) -> None:
    """All that is known of a job, as JSON."""
    with connected(context) as client:
        print_json(client.get_job(job_id))


@jobs.command("watch")
def watch_job(context: typer.Context, job_id: JobId) -> None:
    """Follow a job to its end; exit code 1 unless it succeeds."""
    with connected(context) as client, display(err) as shown:
        status = follow(client.events(job_id), shown)
    out.print(status.value)
    if status is not JobStatus.SUCCEEDED:
        raise typer.Exit(ERROR)


@jobs.command("cancel")
def cancel_job(context: typer.Context, job_id: JobId) -> None:
    """Stop a job; what it has done is dropped."""
    with connected(context) as client:
        out.print(client.cancel_job(job_id).status.value)


@jobs.command("retry")
def retry_job(context: typer.Context, job_id: JobId) -> None:
    """Queue a failed or canceled job again."""
    with connected(context) as client:
        out.print(client.retry_job(job_id).status.value)


@jobs.command("log")
def show_log(context: typer.Context, job_id: JobId) -> None:
    """What the runner printed."""
    with connected(context) as client:
        out.print(client.log(job_id), markup=False, end="", soft_wrap=True)


@jobs.command("report")
def show_report(context: typer.Context, job_id: JobId, as_json: Json = False) -> None:
    """What was measured: the before/after table."""
    with connected(context) as client:
        report = client.report(job_id)
    if as_json:
        return print_json(report)
    return out.print(render(report))


def steps_of(job: Job) -> str:
    return ", ".join(str(step.get("step", "")) for step in job.recipe)
