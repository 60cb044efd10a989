"""The command line. One module a group of commands."""

from typing import Annotated

import typer

from modelpress import __version__
from modelpress.cli import packing, resources, single
from modelpress.cli.compress import compress
from modelpress.cli.connect import service
from modelpress.cli.output import out
from modelpress.cli.up import up

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@cli.callback()
def options(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(envvar="MODELPRESS_URL", help="of the service")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="MODELPRESS_API_KEY", help="the one of `modelpress up` by default")
    ] = None,
    _version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True)] = False,
) -> None:
    """POST a model, get a smaller one back, with proof."""
    context.obj = service(url, api_key)


cli.command()(compress)
cli.command()(up)
cli.add_typer(resources.models, name="models")
cli.add_typer(resources.datasets, name="datasets")
cli.add_typer(resources.jobs, name="jobs")
for command in (single.download, single.compare, single.steps, packing.pack, packing.unpack):
    cli.command()(command)


def main() -> None:
    cli()
