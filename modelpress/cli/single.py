"""Commands of their own: `modelpress download`, `compare`, `steps`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from modelpress.cli.connect import connected
from modelpress.cli.output import Json, out, print_json, size, table
from modelpress.client import StepInfo
from modelpress.client.resources import Candidate, Comparison
from modelpress.steps import Data


def download(
    context: typer.Context,
    model_id: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="file, or folder")] = Path(),
    file_format: Annotated[str | None, typer.Option("--format", help="the first one by default")] = None,
) -> None:
    """Fetch a model's file; a download that broke goes on where it was."""
    with connected(context) as client:
        out.print(str(client.download(model_id, output, file_format)), soft_wrap=True)


def steps(context: typer.Context, name: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """The techniques that a recipe can be made of; with a name, the options of one."""
    with connected(context) as client:
        found = client.steps() if name is None else (client.step(name),)
    if as_json:
        return print_json(found if name is None else found[0])
    if name is not None:
        return out.print(*describe(found[0]), sep="\n")
    shown = table("step", "data it needs", "stage", "what it does")
    for step in found:
        shown.add_row(step.name, data_of(step), step.stage, " ".join(step.description.split()))
    return out.print(shown)


def describe(step: StepInfo) -> tuple[str | Table, ...]:
    options = table("option", "default", "what it is")
    for name, schema in step.options.get("properties", {}).items():
        if name != "step":
            default = schema.get("default")
            options.add_row(name, "" if default is None else str(default), schema.get("description", ""))
    around = (("after", step.may_follow), ("before", step.may_precede))
    lines = [
        f"[bold]{step.name}[/]  {' '.join(step.description.split())}",
        f"needs data: {data_of(step)}; fixes {step.fixes}",
        *(f"may come {side}: {', '.join(names) or 'nothing'}" for side, names in around),
    ]
    return "\n".join(lines), f"[dim]{step.paper}[/]", options


def data_of(step: StepInfo) -> str:
    return f"{step.data.value}, or made-up" if step.made_up and step.data is not Data.NONE else step.data.value


def compare(
    context: typer.Context,
    baseline: Annotated[str, typer.Argument(help="the original (mdl_…)")],
    candidates: Annotated[list[str], typer.Argument(help="results of jobs on it (mdl_…)")],
    as_json: Json = False,
) -> None:
    """Results side by side, from what their reports measured; * marks the Pareto front."""
    with connected(context) as client:
        comparison = client.compare(baseline, candidates)
    if as_json:
        return print_json(comparison)
    out.print(side_by_side(comparison))
    for note in comparison.notes:
        out.print(f"! {note}", markup=False)
    return None


def side_by_side(comparison: Comparison) -> Table:
    shown = table("", "model", "verdict", "size", "smaller", "faster", "quality", "agreement")
    original = comparison.baseline
    shown.add_row("", f"{original.name} (original)", "", size(original.size.bytes), "", "", "", "")
    for candidate in comparison.candidates:
        shown.add_row(*row(candidate))
    return shown


def row(candidate: Candidate) -> tuple[str, ...]:
    faster = next((f"{latency.ratio:.2f}×" for latency in candidate.latency if latency.batch == 1), "")
    quality, agreement = candidate.quality, candidate.agreement
    return (
        "*" if candidate.pareto_optimal else "",
        candidate.name,
        candidate.verdict.value + ("" if candidate.targets_met is not False else ", targets not met"),
        size(candidate.size.bytes),
        f"{candidate.size_ratio:.2f}×",
        faster,
        f"{quality.result:.4f} ({quality.change:+.4f})" if quality else "",
        "" if not agreement else f"{agreement.cosine if agreement.top1 is None else agreement.top1:.4f}",
    )
