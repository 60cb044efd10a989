"""A runner: forked from the zygote with the engine loaded, it waits for one run, does it inside the sandbox, and ends.

Two processes: the runner itself, first of its own process namespace where there is one, and outside of that its keeper,
which waits for its end, ends whatever it left behind and says how it went.
"""

import contextlib
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from modelpress.run import Event
from workers import kernel, messages, sandbox

CRASHED, OUT_OF_MEMORY, NO_SANDBOX = 70, 71, 72
"""Exit codes, beside 0: the engine raised, ran out of memory, or the sandbox did not close as it did when tried."""

MEMORY_WORDS = ("can't allocate memory", "bad_alloc", "bad allocation", "failed to allocate", "out of memory")


class Engine(Protocol):
    def preload(self) -> None: ...

    def run(self, run_dir: Path, emit: Callable[[Event], None]) -> object: ...


def keep(engine: Engine, channel: socket.socket, namespaces: int) -> None:
    """The keeper's life, from its fork to its end. `channel` leads to the zygote."""
    kernel.die_with_parent(signal.SIGKILL)
    kernel.adopt_orphans()
    sandbox.enter_namespaces(namespaces)
    process = os.fork()
    if process == 0:
        _run(engine, channel, namespaces)
    kernel.name_process("modelpress-keep")
    pidfd = os.pidfd_open(process)
    messages.send(channel, messages.Forked(), pidfd)
    os.close(pidfd)
    _, status, usage = os.wait4(process, 0)
    kernel.kill_children()  # with a process namespace there are none: they went with its first process
    code = os.waitstatus_to_exitcode(status)
    messages.send(channel, messages.Ended(status=code, peak_bytes=usage.ru_maxrss * 1024))
    os._exit(0)


def _run(engine: Engine, channel: socket.socket, namespaces: int) -> None:
    kernel.die_with_parent(signal.SIGKILL)
    os.setsid()
    kernel.name_process("modelpress-run")
    with contextlib.suppress(OSError):  # where the kernel must end somebody for want of memory, let it be this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        held = sandbox.settle(namespaces)
        request, files = messages.receive(channel)
    except OSError as error:
        _say(f"the sandbox cannot be entered: {error}")
        os._exit(NO_SANDBOX)
    if not isinstance(request, messages.Run):
        os._exit(0)  # the zygote has ended
    events, log = files
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(events, 3)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os._exit(_work(engine, request, held))


def _work(engine: Engine, request: messages.Run, held: tuple[str, ...]) -> int:
    # SIGTERM comes before the end: the log then says where the run was. The handler is C, so it works in any operation.
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM)
    run_dir = Path(request.run_dir)
    _move_in(run_dir)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        sandbox.confine(sandbox.Limits(run_dir, request.memory_bytes, request.file_bytes))
    except OSError as error:
        _say(f"the sandbox cannot be closed: {error}; held so far: {', '.join(held)}")
        return NO_SANDBOX
    try:
        engine.run(run_dir, EventWriter(3))
    except MemoryError:
        _say("out of memory")
        return OUT_OF_MEMORY
    except BaseException as error:  # noqa: BLE001  # nobody is above us: its words go to the log, and the code says the rest
        sys.excepthook(type(error), error, error.__traceback__)
        return OUT_OF_MEMORY if any(word in str(error).lower() for word in MEMORY_WORDS) else CRASHED
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
    return 0


def _move_in(run_dir: Path) -> None:
    """Everything that libraries want to leave somewhere goes into the run directory."""
    temporary = run_dir / "tmp"
    temporary.mkdir(exist_ok=True)
    os.chdir(run_dir)
    os.environ.update(HOME=str(temporary), TMPDIR=str(temporary))
    tempfile.tempdir = None


def _say(sentence: str) -> None:
    os.write(2, f"{sentence}\n".encode())


class EventWriter:
    """Events as JSON lines; whole lines, whichever thread sends them."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        line = event.model_dump_json().encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._file, line) :]
