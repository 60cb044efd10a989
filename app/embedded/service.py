"""One of our own programs as a part that is watched, and the watch over all parts."""

import logging
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from app.embedded.child import Child, StartError

SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
STEADY_SECONDS = 60  # who has run for this long starts again at once, should it end

log = logging.getLogger(__name__)


class Part(Protocol):
    name: str

    @property
    def running(self) -> bool: ...

    def start(self) -> None:
        """Raises StartError."""


class Service:
    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], logs: Path) -> None:
        self.name = name
        self.child: Child | None = None
        self._argv = argv
        self._env = env
        self._log = logs / f"{name}.log"

    def start(self) -> None:
        self.child = Child(self._argv, self._log, env=self._env)

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.running

    @property
    def last_words(self) -> str:
        return f"{self._log}:\n{self.child.output() if self.child else ''}"


def stop_all(services: Iterable[Service], grace_seconds: float) -> None:
    """Ask all at once, wait for all, kill what is left."""
    children = [service.child for service in services if service.child is not None]
    for child in children:
        child.ask_to_stop(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    for child in children:
        child.stop(max(0.0, deadline - time.monotonic()))


class Watch:
    """Starts a part that has ended again, with a pause that doubles while it keeps ending."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._pause = SHORTEST_PAUSE
        self._started = time.monotonic()
        self._due: float | None = None

    def look(self) -> None:
        now = time.monotonic()
        if self.part.running:
            return
        if self._due is None:
            if now - self._started > STEADY_SECONDS:
                self._pause = SHORTEST_PAUSE
            log.warning("%s has ended; it is started again in %.1f s", self.part.name, self._pause)
            self._due = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        elif now >= self._due:
            self._due = None
            self._started = now
            try:
                self.part.start()
            except StartError as error:
                log.warning("%s does not start: %s", self.part.name, error)
