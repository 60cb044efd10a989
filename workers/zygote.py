"""The zygote: loads the engine once and keeps forked, unused runners ready. Started by `workers.pool`, never by hand.

It has one thread and no credentials, reads no input, and ends with the supervisor that started it.
"""

import argparse
import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
from dataclasses import dataclass
from typing import cast

from workers import kernel, messages, runner, sandbox
from workers.probe import probe

MOST_STILLBORN = 10


@dataclass(eq=False)
class Child:
    """A keeper and its runner, as the zygote sees them."""

    keeper: int
    exit: int
    """pidfd of the keeper."""
    channel: socket.socket
    runner: int | None = None
    """pidfd of the runner; None until its keeper has said that it is there."""
    number: int | None = None
    """Of the run that it does; None while it waits for one."""
    ended: messages.Ended | None = None

    def close(self) -> None:
        self.channel.close()
        os.close(self.exit)
        if self.runner is not None:
            os.close(self.runner)


class Zygote:
    def __init__(self, engine: runner.Engine, control: socket.socket, spares: int) -> None:
        self.engine = engine
        self.control = control
        self.spares = spares
        self.children: list[Child] = []
        self.requests: list[tuple[messages.Run, list[int]]] = []
        self.selector = selectors.DefaultSelector()
        self.stillborn = 0
        self.namespaces, self.rungs = best_sandbox()

    def serve(self) -> None:
        """Until the supervisor's end of the control socket closes."""
        self.selector.register(self.control, selectors.EVENT_READ)
        self._refill()
        messages.send(self.control, messages.Ready(sandbox=self.rungs))
        while True:
            for key, _ in self.selector.select():
                if key.data is not None:
                    if key.data in self.children:  # its exit may stand before its last words in the same selection
                        self._attend(key.data, gone=key.fd == key.data.exit)
                    continue
                message, files = messages.receive(self.control)
                if not isinstance(message, messages.Run):
                    return
                self.requests.append((message, files))
            self._assign()
            self._refill()

    def _assign(self) -> None:
        for child in self.children:
            if self.requests and child.number is None and child.runner is not None:
                request, files = self.requests.pop(0)
                child.number = request.number
                with contextlib.suppress(OSError):  # it has just died: its burial will tell
                    messages.send(child.channel, request, *files)
                messages.close_all(files)
                messages.send(self.control, messages.Started(number=request.number), child.runner)

    def _refill(self) -> None:
        idle = sum(child.number is None for child in self.children)
        for _ in range(self.spares + len(self.requests) - idle):
            ours, theirs = messages.pair()
            keeper = os.fork()
            if keeper == 0:
                self._become_keeper(ours, theirs)
            theirs.close()
            ours.setblocking(False)
            child = Child(keeper, os.pidfd_open(keeper), ours)
            self.children.append(child)
            self.selector.register(child.channel, selectors.EVENT_READ, child)
            self.selector.register(child.exit, selectors.EVENT_READ, child)

    def _become_keeper(self, ours: socket.socket, theirs: socket.socket) -> None:
        """In the forked process: what belongs to the zygote and to its other children is not ours to hold open."""
        try:
            self.selector.close()
            self.control.close()
            ours.close()
            for other in self.children:
                other.close()
            for _, files in self.requests:
                messages.close_all(files)
            runner.keep(self.engine, theirs, self.namespaces)
        except BrokenPipeError:
            pass  # the zygote has ended, and the kernel is about to end us
        except BaseException as error:  # noqa: BLE001  # whatever it is, this process must not go on as a second zygote
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            os._exit(runner.NO_SANDBOX)

    def _attend(self, child: Child, *, gone: bool) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                message, files = messages.receive(child.channel)
                if isinstance(message, messages.Forked):
                    (child.runner,) = files
                elif isinstance(message, messages.Ended):
                    child.ended = message
                else:
                    break
        if gone:
            self._bury(child)

    def _bury(self, child: Child) -> None:
        self.children.remove(child)
        self.selector.unregister(child.channel)
        self.selector.unregister(child.exit)
        os.waitpid(child.keeper, 0)
        ended = child.ended
        if ended is None:  # the keeper itself was killed; its runner dies with it, and this makes sure of that
            ended = messages.Ended(status=-signal.SIGKILL, peak_bytes=0)
            if child.runner is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(child.runner, signal.SIGKILL)
        child.close()
        if child.number is not None:
            self.stillborn = 0
            exited = messages.Exited(number=child.number, status=ended.status, peak_bytes=ended.peak_bytes)
            messages.send(self.control, exited)
            return
        self.stillborn += 1
        if self.stillborn >= MOST_STILLBORN:
            raise RuntimeError(f"{self.stillborn} runners in a row ended before they had work, the last with {ended}")


def best_sandbox() -> tuple[int, tuple[str, ...]]:
    """The best set of namespaces that works here, found by trying, and the rungs that hold with it."""
    for namespaces in sandbox.NAMESPACES:
        rungs = probe(namespaces)
        if rungs is not None:
            return namespaces, rungs
    raise RuntimeError("not even the sandbox without namespaces works: see the lines above")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--control", type=int, required=True, help="file descriptor of a socket to the supervisor")
    arguments.add_argument("--engine", required=True, help="module with preload() and run()")
    arguments.add_argument("--spares", type=int, required=True, help="how many runners to keep ready")
    options = arguments.parse_args()
    kernel.die_with_parent(signal.SIGKILL)
    kernel.name_process("modelpress-zyg")
    control = socket.socket(fileno=options.control)
    control.set_inheritable(False)
    engine = cast(runner.Engine, importlib.import_module(options.engine))
    engine.preload()
    if kernel.threads() != 1:
        raise RuntimeError(f"{options.engine}.preload() has started threads: what they hold locked stays so in a fork")
    gc.collect()
    gc.freeze()  # objects of the engine are never collected, so that runners share their pages
    Zygote(engine, control, options.spares).serve()


if __name__ == "__main__":
    main()
