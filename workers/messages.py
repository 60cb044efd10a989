"""What the supervisor, the zygote and the runners say to each other over unix sockets that keep message bounds."""

import array
import os
import socket
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from modelpress.jobs import Strict

LARGEST = 1 << 16


class Run(Strict):
    """Start a run. Comes with two file descriptors: where events go, and where the log goes."""

    type: Literal["run"] = "run"
    number: int
    run_dir: str
    memory_bytes: int | None
    file_bytes: int


class Ready(Strict):
    """The engine is loaded and runners wait. `sandbox`: the rungs that held when tried."""

    type: Literal["ready"] = "ready"
    sandbox: tuple[str, ...]


class Started(Strict):
    """Comes with a pidfd of the runner."""

    type: Literal["started"] = "started"
    number: int


class Exited(Strict):
    """`status` is the exit code, or minus the signal's number."""

    type: Literal["exited"] = "exited"
    number: int
    status: int
    peak_bytes: int


class Forked(Strict):
    """From the keeper of a runner that waits for work. Comes with a pidfd of the runner."""

    type: Literal["forked"] = "forked"


class Ended(Strict):
    """From the keeper of a runner, after the runner's end."""

    type: Literal["ended"] = "ended"
    status: int
    peak_bytes: int


Message = Annotated[Run | Ready | Started | Exited | Forked | Ended, Field(discriminator="type")]
_message: TypeAdapter[Message] = TypeAdapter(Message)


def send(channel: socket.socket, message: Message, *files: int) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    channel.sendmsg([message.model_dump_json().encode()], ancillary)


def receive(channel: socket.socket) -> tuple[Message | None, list[int]]:
    """None at the end of the stream. The files are ours to close, and close on exec."""
    files = array.array("i")
    # Not socket.recv_fds: in Python 3.11 it does not pass the flag on.
    data, ancillary, _, _ = channel.recvmsg(LARGEST, socket.CMSG_SPACE(4 * files.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(content[: len(content) - len(content) % files.itemsize])
    return _message.validate_json(data) if data else None, list(files)


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def close_all(files: list[int]) -> None:
    for file in files:
        os.close(file)
