"""Tries the sandbox out in a process of its own, so that what is said about it is what holds here and now."""

import os
import sys
import tempfile
from pathlib import Path

from workers import sandbox


def probe(namespaces: int) -> tuple[str, ...] | None:
    """The rungs that hold with these namespaces; None where they cannot be entered at all."""
    with tempfile.TemporaryDirectory(prefix="modelpress-probe-") as folder:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            _climb(namespaces, Path(folder), writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as answers:
            answer = answers.read().decode()
        os.waitpid(process, 0)
    return tuple(answer.split()) or None


def _climb(namespaces: int, folder: Path, answer: int) -> None:
    """Two processes, as a runner and its keeper are, because a process namespace begins with the child."""
    try:
        sandbox.enter_namespaces(namespaces)
        process = os.fork()
        if process:
            os.waitpid(process, 0)
        else:
            rungs = sandbox.settle(namespaces) + sandbox.confine(sandbox.Limits(folder, 1 << 40, 1 << 40))
            os.write(answer, " ".join(rungs).encode())
    except OSError as error:
        sys.stderr.write(f"sandbox with namespaces {namespaces:#x}: {error}\n")
    finally:
        os._exit(0)
