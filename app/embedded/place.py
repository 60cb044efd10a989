"""Where an embedded server runs: a free loopback port, and a user who is not root."""

import os
import pwd
import shutil
import socket
from pathlib import Path
from typing import Protocol

from app.embedded.child import StartError, User

HOST = "127.0.0.1"


def unprivileged() -> User | None:
    """Where we are root: `daemon`, which every Linux has. Not `nobody`: others may run untrusted code as that."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("daemon")
    except KeyError:
        raise StartError(
            "PostgreSQL refuses to run as root, and there is no user `daemon` to run it: start as another user, or set"
            " DATABASE_URL and REDIS_URL"
        ) from None
    return User(entry.pw_uid, entry.pw_gid)


def hand_over(path: Path, user: User | None) -> None:
    if user:
        os.chown(path, user.uid, user.gid)


def private_folder(path: Path, user: User | None = None) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    hand_over(path, user)
    return path


class Server(Protocol):
    port: int

    def start(self) -> None: ...


def start_on_free_port(server: Server) -> None:
    """Between our looking for a port and the server's taking it, somebody else may."""
    for tries_left in (2, 1, 0):
        server.port = free_port()
        try:
            server.start()
        except StartError:
            if not tries_left:
                raise
        else:
            return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def find_program(*names: str) -> str | None:
    return next(filter(None, map(shutil.which, names)), None)
