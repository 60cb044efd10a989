"""A job's progress as it comes in: a bar in a terminal, a line a change where the output is a file or a pipe."""

from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from modelpress.client import JobEvent
from modelpress.jobs import JobStatus
from modelpress.jobs import Progress as JobProgress


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...
    def say(self, text: str) -> None:
        """Something to keep in sight, such as a warning."""

    def show(self, step: str, fraction: float, message: str) -> None: ...


def display(console: Console) -> Display:
    return Bar(console) if console.is_terminal else Lines(console)


class Bar:
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[step]:<20}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=1.0, step="", message="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.console.print(text)

    def show(self, step: str, fraction: float, message: str) -> None:
        self._progress.update(self._task, completed=fraction, step=step, message=message)


class Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ("", -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def show(self, step: str, fraction: float, message: str) -> None:
        """A line for each new step, and for every tenth of the way."""
        now = (step, int(fraction * 10))
        if now != self._last:
            self._last = now
            self._console.print(f"{fraction:4.0%}  {step:<20}  {message}".rstrip(), soft_wrap=True)


def follow(events: Iterable[JobEvent], shown: Display) -> JobStatus:
    """Show a job's events until its end. Returns how it ended."""
    step, fraction, message, figures = "", 0.0, "", ""
    status = JobStatus.QUEUED
    for event in events:
        match event.type:
            case "progress":
                progress = JobProgress.model_validate(event.data)
                if progress.step != step:
                    figures = ""
                step, fraction, message = progress.step, progress.fraction, progress.message
            case "metric" if event.data["step"] == step:
                figures = figures_of(event, message)
            case "warning":
                shown.say(f"[yellow]![/] {escape(event.data['message'])}")
            case "status":
                status = JobStatus(event.data["status"])
                step, message, figures = status.value, "", ""
                fraction = 1.0 if status is JobStatus.SUCCEEDED else 0.0
                if status is JobStatus.QUEUED and "error" in event.data:
                    reason = event.data["error"]["message"]
                    shown.say(f"attempt {event.attempt}: {escape(reason)} The job is tried again.")
        shown.show(step, fraction, "  ".join(filter(None, (message, figures))))
    return status


def figures_of(event: JobEvent, message: str) -> str:
    """Those that the progress does not say already."""
    values: dict[str, float | None] = event.data["values"]
    new = {name: value for name, value in values.items() if name not in {"epoch", "learning_rate"}}
    shown = {name: value for name, value in new.items() if value is not None and name not in message}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
