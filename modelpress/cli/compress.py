"""`modelpress compress`: upload, run, show, download, and say how it went by the exit code."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from modelpress.cli.connect import ERROR, connected
from modelpress.cli.output import err, out, print_json
from modelpress.cli.progress import Display, display, follow
from modelpress.cli.recipe import RecipeError, read_recipe
from modelpress.cli.report import render
from modelpress.client import Client, Job, Model
from modelpress.client.resources import File, JobResult
from modelpress.jobs import Extra, Format, JobStatus, MaxDrop, Targets
from modelpress.report import Report, Verdict
from modelpress.steps import AnyStep

EXIT = {Verdict.PASSED: 0, Verdict.DEGRADED: 3, Verdict.NO_GAIN: 4}
TARGETS_UNMET = 5
INTERRUPTED = 130
USES = ("train", "calibrate", "evaluate")
FORMATS, EXTRAS = get_args(Format), get_args(Extra)


def compress(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="a model's file or folder, or the id of one that is there (mdl_…)")],
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="steps as step:option=value,step…, as JSON, a .json file, or auto")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", metavar="USE=FILE", help="train=, calibrate= or evaluate=, a file or dst_… id"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file or folder for the result; here by default")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", metavar="FORMAT", help=f"{', '.join(FORMATS)}; may be given several times"),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="for weights alone: file or id of a model with their layers")
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
    steps, files = read_options(recipe, data or [], formats or [])
    options: dict[str, Any] = {"formats": formats} if formats else {}
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
            layers = None if architecture is None else model_of(client, architecture, shown)
            model_id = model_of(client, model, shown, layers)
            if teacher is not None:
                options["teacher"] = model_of(client, teacher, shown)
            options["data"] = {use: dataset_of(client, file, shown) for use, file in files.items()}
            job = run(client, client.create_job(model_id, steps, **options), shown)
        result = finished(job)
        report = client.report(job.id)
        paths = fetched(client, client.get_model(result.model_id), output, model)
        if as_json:
            named = {name: str(path) for name, path in paths.items()}
            print_json({"job_id": job.id, "model_id": result.model_id, "files": named, "report": report})
        else:
            for path in paths.values():
                out.print(f"{path}  ({result.model_id}, {job.id})", soft_wrap=True)
            out.print(render(report))
    absent = [name for name in formats or [] if name not in paths]
    if absent:
        err.print(f"not there: {', '.join(absent)}; the report says why", style="bold red")
    raise typer.Exit(ERROR if absent else exit_code(report))


def read_options(
    recipe: str, data: list[str], formats: list[str]
) -> tuple[list[AnyStep] | Literal["auto"], dict[str, str]]:
    """Everything that can be wrong before the first byte is sent."""
    try:
        steps: list[AnyStep] | Literal["auto"] = "auto" if recipe == "auto" else read_recipe(recipe)
    except RecipeError as error:
        raise typer.BadParameter(str(error), param_hint="--recipe") from None
    for name in formats:
        if name not in FORMATS:
            raise typer.BadParameter(f"{name!r}: there are {', '.join(FORMATS)}", param_hint="--format")
    files: dict[str, str] = {}
    for item in data:
        use, equals, file = item.partition("=")
        if not equals or use not in USES:
            raise typer.BadParameter(f"{item!r}: write {', '.join(f'{use}=FILE' for use in USES)}", param_hint="--data")
        files[use] = file
    return steps, files


def model_of(client: Client, given: str, shown: Display, architecture: str | None = None) -> str:
    if given.startswith("mdl_"):
        return given
    shown.show("uploading", 0, given)
    return client.wait(client.upload_model(given, architecture=architecture)).id


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


def fetched(client: Client, result: Model, output: Path | None, model: str) -> dict[str, Path]:
    """Every file of the result, by its format."""
    return {
        file.format: client.download(
            result.id, target_of(output, model, file, alone=len(result.files) == 1), file.format
        )
        for file in result.files
    }


def target_of(output: Path | None, model: str, file: File, *, alone: bool) -> Path:
    """The path that was given; else beside nothing of the user's: the model's name with a word more."""
    suffix = Path(file.filename).suffix
    if file.format in EXTRAS:
        suffix = f".{file.format}{suffix}"
    if output is None:
        path = Path(model)
        stem = model if model.startswith("mdl_") else path.resolve().name if path.is_dir() else path.stem
        return Path(f"{stem}.compressed{suffix}")
    return output if alone or output.is_dir() else output.with_suffix(suffix)


def exit_code(report: Report) -> int:
    verdict = EXIT[report.verdict]
    return TARGETS_UNMET if not verdict and report.targets_met is False else verdict
