"""A child process that ends when we end, even after a kill -9."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

GUARD = Path(__file__).with_name("guard.py")
LARGEST_LOG = 16 << 20


class StartError(Exception):
    """A part did not start; the message says which and why."""


class User(NamedTuple):
    uid: int
    gid: int


class Child:
    """Runs `argv` in a session of its own, its output appended to `log`.

    To be made in the main thread: the kernel ties the child to the thread that started it.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        log: Path,
        *,
        user: User | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a child started outside the main thread would end with that thread")
        self.name = Path(argv[0]).name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LARGEST_LOG:
            log.replace(log.with_suffix(".old.log"))
        guard = (sys.executable, "-I", "-S", GUARD, str(os.getpid()), str(int(death_signal)))
        with log.open("ab") as output:
            self._log_start = output.tell()
            self.process = subprocess.Popen(  # noqa: S603 - our own programs
                [*guard, f"{user.uid}:{user.gid}" if user else "", *argv],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        assert self.process.stdin is not None  # noqa: S101 - for the type checker; asked for above
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(stdin)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def output(self, lines: int = 15) -> str:
        """The end of what it has written since it was started."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 16_384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def ask_to_stop(self, ask: signal.Signals = signal.SIGTERM) -> None:
        if self.running:
            self.process.send_signal(ask)

    def stop(self, grace_seconds: float, ask: signal.Signals = signal.SIGTERM) -> None:
        """Ask, wait, then kill."""
        self.ask_to_stop(ask)
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Raises StartError where it ends or does not answer in time."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running:
                raise StartError(f"{self.name} ended at once ({self.log}):\n{self.output()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} did not answer within {seconds:.0f} s ({self.log}):\n{self.output()}")
            time.sleep(0.02)
