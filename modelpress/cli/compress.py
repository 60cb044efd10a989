"""`modelpress compress`: upload, run, show, download, and say how it went by the exit code."""

from pathlib import Path
from typing import Annotated, Any

import typer

from modelpress.cli.connect import ERROR, connected
from modelpress.cli.output import err, out, print_json
from modelpress.cli.progress import Display, display, follow
from modelpress.cli.recipe import RecipeError, read_recipe
from modelpress.cli.report import render
from modelpress.client import Client, Job
from modelpress.client.resources import JobResult
from modelpress.jobs import JobStatus, MaxDrop, Targets
from modelpress.report import Report, Verdict
from modelpress.steps import AnyStep

EXIT = {Verdict.PASSED: 0, Verdict.DEGRADED: 3, Verdict.NO_GAIN: 4}
TARGETS_UNMET = 5
INTERRUPTED = 130
USES = ("train", "calibrate", "evaluate")


def compress(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="the file of a model, or the id of one that is there (mdl_…)")],
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="steps as step:option=value,step…, as JSON, or a .json file")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", metavar="USE=FILE", help="train=, calibrate= or evaluate=, a file or dst_… id"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file or folder for the result; here by default")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="file or id of a model that distillation learns from")] = None,
    max_drop: Annotated[float | None, typer.Option(help="target: the task's metric may fall by so much")] = None,
    size_ratio: Annotated[float | None, typer.Option(help="target: so many times smaller")] = None,
    latency_ratio: Annotated[float | None, typer.Option(help="target: so many times faster at batch 1")] = None,
    seconds: Annotated[float | None, typer.Option(help="the job fails when it runs longer")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document instead of the table")] = False,
) -> None:
    """Compress a model and show what was measured.

    Exit code 0: passed. 1: an error. 3: quality fell too far. 4: nothing gained. 5: a target was missed.
    """
    steps, files = read_options(recipe, data or [])
    options: dict[str, Any] = {}
    targets = {
        "max_drop": max_drop and MaxDrop(absolute=max_drop),
        "size_ratio": size_ratio,
        "latency_ratio": latency_ratio,
    }
    if any(targets.values()):
        options["targets"] = Targets(**{name: value for name, value in targets.items() if value})
    if seconds is not None:
        options["budget"] = {"seconds": seconds}
    if seed is not None:
        options["seed"] = seed
    with connected(context) as client:
        with display(err) as shown:
            model_id = model_of(client, model, shown)
            if teacher is not None:
                options["teacher"] = model_of(client, teacher, shown)
            options["data"] = {use: dataset_of(client, file, shown) for use, file in files.items()}
            job = run(client, client.create_job(model_id, steps, **options), shown)
        result = finished(job)
        report = client.report(job.id)
        path = client.download(result.model_id, target_of(output, model))
        if as_json:
            print_json({"job_id": job.id, "model_id": result.model_id, "output": str(path), "report": report})
        else:
            out.print(f"{path}  ({result.model_id}, {job.id})", soft_wrap=True)
            out.print(render(report))
    raise typer.Exit(exit_code(report))


def read_options(recipe: str, data: list[str]) -> tuple[list[AnyStep], dict[str, str]]:
    """Everything that can be wrong before the first byte is sent."""
    try:
        steps = read_recipe(recipe)
    except RecipeError as error:
        raise typer.BadParameter(str(error), param_hint="--recipe") from None
    files: dict[str, str] = {}
    for item in data:
        use, equals, file = item.partition("=")
        if not equals or use not in USES:
            raise typer.BadParameter(f"{item!r}: write {', '.join(f'{use}=FILE' for use in USES)}", param_hint="--data")
        files[use] = file
    return steps, files


def model_of(client: Client, given: str, shown: Display) -> str:
    if given.startswith("mdl_"):
        return given
    shown.show("uploading", 0, given)
    return client.wait(client.upload_model(given)).id


def dataset_of(client: Client, given: str, shown: Display) -> str:
    if given.startswith("dst_"):
        return given
    shown.show("uploading", 0, given)
    return client.wait(client.upload_dataset(given)).id


def run(client: Client, job: Job, shown: Display) -> Job:
    """Until its end; an interrupt cancels it first."""
    try:
        follow(client.events(job.id), shown)
    except KeyboardInterrupt:
        client.cancel_job(job.id)
        shown.say(f"{job.id} is canceled")
        raise typer.Exit(INTERRUPTED) from None
    return client.get_job(job.id)


def finished(job: Job) -> JobResult:
    if job.status is JobStatus.SUCCEEDED and job.result is not None:
        return job.result
    err.print(f"[bold red]{job.status.value}[/] ({job.id})")
    if job.error is not None:
        err.print(f"{job.error.message} [{job.error.code}]", markup=False, soft_wrap=True)
        err.print(f"what the runner printed: modelpress jobs log {job.id}", style="dim", soft_wrap=True)
    raise typer.Exit(ERROR)


def target_of(output: Path | None, model: str) -> Path:
    """A file beside nothing of the user's: the model's name with a word more."""
    if output is not None:
        return output
    stem = model if model.startswith("mdl_") else Path(model).stem
    return Path(f"{stem}.compressed.onnx")


def exit_code(report: Report) -> int:
    verdict = EXIT[report.verdict]
    return TARGETS_UNMET if not verdict and report.targets_met is False else verdict
