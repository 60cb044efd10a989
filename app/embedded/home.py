"""MODELPRESS_HOME: who uses it, and the secrets that are kept in it."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.embedded.child import StartError


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One start at a time. The kernel gives the lock back however we end. Raises StartError where it is taken."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StartError(
                f"Modelpress already runs in {home} (process {lock.read().strip()}). Stop that one first, or set"
                " MODELPRESS_HOME to another folder."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def kept(path: Path, make: Callable[[], str]) -> str:
    """The secret in this file, made once. Only our own user can read it."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        secret = make()
        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(secret)
        fresh.replace(path)
        return secret
