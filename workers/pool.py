"""Warm runners for a supervisor: starts the zygote, starts it again when it dies, and hands out handles on runs.

The zygote ends when the thread that started it does (PR_SET_PDEATHSIG looks at threads), so that thread lives here.
"""

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from workers import messages

log = logging.getLogger(__name__)

PASSED_ON = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "PATH", "TZ")
LOST = -signal.SIGKILL


class Runner:
    """One run in a runner. `events`, `log` and `exit` are files to select on; `exit` is readable at the end."""

    def __init__(self, number: int, events: int, log_file: int) -> None:
        self.number = number
        self.events = events
        self.log = log_file
        self.exit = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.status: int | None = None
        self.peak_bytes = 0
        self._pidfd: int | None = None
        self._lock = threading.Lock()
        self._wanted: signal.Signals | None = None
        self._closed = False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        with self._lock:
            self._wanted = number
            if self._pidfd is not None and self.status is None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, number)

    def started(self, pidfd: int) -> None:
        with self._lock:
            if self._wanted is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, self._wanted)
            if self._closed:
                os.close(pidfd)
            else:
                self._pidfd = pidfd

    def ended(self, status: int, peak_bytes: int) -> None:
        with self._lock:
            self.status = status
            self.peak_bytes = peak_bytes
            if not self._closed:
                os.eventfd_write(self.exit, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Where the run has not ended, it is killed."""
        self.kill()
        with self._lock:
            self._closed = True
            messages.close_all([self.events, self.log, self.exit, *([] if self._pidfd is None else [self._pidfd])])
            self._pidfd = None


class Pool:
    def __init__(
        self, spares: int = 1, engine: str = "workers.engine.pipeline", import_path: tuple[Path, ...] = ()
    ) -> None:
        self.spares = spares
        self.engine = engine
        self.import_path = (Path(__file__).parents[1], *import_path)
        self.sandbox: tuple[str, ...] = ()
        self.ready = threading.Event()
        """Set while a zygote with a loaded engine waits."""
        self._numbers = itertools.count(1)
        self._runners: dict[int, Runner] = {}
        self._control: socket.socket | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_zygote, name="zygote", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the zygote and every run."""
        self._closing.set()
        with self._lock:
            if self._control is not None:
                self._control.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def run(self, run_dir: Path, memory_bytes: int | None, file_bytes: int) -> Runner:
        """The runner ends with status LOST where the zygote dies meanwhile."""
        events, events_end = os.pipe()
        log_file, log_end = os.pipe()
        runner = Runner(next(self._numbers), events, log_file)
        request = messages.Run(
            number=runner.number, run_dir=str(run_dir), memory_bytes=memory_bytes, file_bytes=file_bytes
        )
        with self._lock:
            self._runners[runner.number] = runner
            try:
                if self._control is None:
                    raise ConnectionError("there is no zygote")
                messages.send(self._control, request, events_end, log_end)
            except OSError:
                del self._runners[runner.number]
                runner.ended(LOST, 0)
            finally:
                messages.close_all([events_end, log_end])
        return runner

    def _keep_zygote(self) -> None:
        pause = 0.1
        while not self._closing.is_set():
            born = time.monotonic()
            self._live_with_zygote()
            if self._closing.is_set():
                return
            pause = 0.1 if time.monotonic() - born > 60 else min(2 * pause, 30)
            log.warning("the zygote has ended; the next starts in %.1f s", pause)
            self._closing.wait(pause)

    def _live_with_zygote(self) -> None:
        ours, theirs = messages.pair()
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {
            # OpenMP threads that spin at a barrier take the cores from whoever they wait for: training was five times
            # slower with the default on a busy machine.
            "GOMP_SPINCOUNT": "1000",
            "LANG": "C.UTF-8",
            "OPENBLAS_NUM_THREADS": "1",  # its pool would start with the import of numpy, before the fork
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(map(str, self.import_path)),
            "PYTHONUNBUFFERED": "1",
            "USER": "modelpress",  # libraries ask for a name, and the sandbox hides /etc/passwd
        }
        arguments = ["--control", str(theirs.fileno()), "--engine", self.engine, "--spares", str(self.spares)]
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-P", "-m", "workers.zygote", *arguments],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        with self._lock:
            self._control = ours
        try:
            if not self._closing.is_set():
                self._listen(ours)
        except OSError:
            log.warning("the zygote's socket broke", exc_info=True)
        finally:
            self.ready.clear()
            self._end(process)

    def _listen(self, control: socket.socket) -> None:
        while True:
            message, files = messages.receive(control)
            if isinstance(message, messages.Ready):
                self.sandbox = message.sandbox
                self.ready.set()
                log.info("runners are ready; sandbox: %s", ", ".join(message.sandbox))
            elif isinstance(message, messages.Started):
                self._runners[message.number].started(files[0])
            elif isinstance(message, messages.Exited):
                self._runners.pop(message.number).ended(message.status, message.peak_bytes)
            else:
                return

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            if self._control is not None:
                self._control.close()
            self._control = None
            lost, self._runners = list(self._runners.values()), {}
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for runner in lost:
            runner.kill()
            runner.ended(LOST, 0)
