"""Which service the command line talks to, and with which key."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from modelpress.cli.output import err
from modelpress.client import Client, ModelpressError
from modelpress.client.connection import DEFAULT_URL

ERROR = 1


@dataclass(frozen=True)
class Service:
    """Made by the program's own options, found by each command in its context."""

    url: str
    api_key: str | None

    def client(self) -> Client:
        return Client(self.url, self.api_key)


def service(url: str | None, api_key: str | None) -> Service:
    return Service(url or DEFAULT_URL, api_key)


@contextmanager
def connected(context: typer.Context) -> Iterator[Client]:
    """A client. What goes wrong is said in a sentence, not in a stack trace."""
    chosen: Service = context.obj
    try:
        with chosen.client() as client:
            yield client
    except ModelpressError as error:
        err.print(f"[bold red]error[/]: {error.title + ': ' if error.title and not error.detail else ''}", end="")
        err.print(str(error), markup=False, soft_wrap=True)
        if error.code == "unauthenticated":
            err.print("give a key with --api-key or MODELPRESS_API_KEY", markup=False)
        raise typer.Exit(ERROR) from None
    except (OSError, TimeoutError) as error:
        told = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        err.print(f"error: {told}", markup=False, style="red", soft_wrap=True)
        raise typer.Exit(ERROR) from None
