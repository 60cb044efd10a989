"""Workers and reconcilers as processes of their own, the way they are deployed, to be killed and stopped at will."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import psutil

from app.settings import Settings
from tests.worker.jobs import until

ROOT = Path(__file__).parents[2]
WORKER = ("celery", "-A", "tests.worker.celery_app", "worker", "--loglevel", "INFO")
REAL_WORKER = ("celery", "-A", "workers.celery_app", "worker", "--loglevel", "INFO")
RECONCILER = ("workers.reconciler",)
READY = {WORKER: "runners are ready", REAL_WORKER: "runners are ready"}


def environment(settings: Settings) -> dict[str, str]:
    values = settings.model_dump(exclude_none=True)
    named = {name: values.pop(name) for name in ("database_url", "redis_url", "storage_url")}
    own = {f"MODELPRESS_{name}": value for name, value in values.items()} | named
    return {**os.environ, **{name.upper(): str(value) for name, value in own.items()}}


class Service:
    """`with` it around a test; its output is in `log`."""

    def __init__(self, settings: Settings, folder: Path, module: tuple[str, ...] = WORKER) -> None:
        self.log = folder / f"{module[0]}-{len(list(folder.iterdir()))}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=ROOT,
                env=environment(settings),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        sentence = READY.get(module, "")
        until(lambda: sentence in self.log.read_text() and self.process.poll() is None, 40, self.log.read_text)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """As an orchestrator ends a container."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)

    def below(self, name: str = "") -> list[psutil.Process]:
        """Processes that this one started, and theirs."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.name().startswith(name)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.kill()


def busy_runner(service: Service) -> psutil.Process:
    """The runner that holds a run directory open as its working directory."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        found[:] = [process for process in service.below("modelpress-run") if "scratch" in process.cwd()]
        return bool(found)

    until(is_there)
    return found[0]
