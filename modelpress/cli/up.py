"""`modelpress up`: the whole service on this machine."""

from typing import Annotated

import typer

from modelpress.cli.connect import ERROR
from modelpress.cli.output import err


def up(
    host: Annotated[str, typer.Option(help="0.0.0.0 opens it to the network")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
) -> None:
    """Start the service with its own PostgreSQL and Redis, unless DATABASE_URL and REDIS_URL name others."""
    try:
        from app.embedded.up import run  # noqa: PLC0415 - the server's packages may not be there
    except ModuleNotFoundError as error:
        err.print(f"`modelpress up` needs {error.name}: pip install 'modelpress[server,worker,embedded]'", markup=False)
        raise typer.Exit(ERROR) from None
    run(host, port)
