"""POST a model, get a smaller one back, with proof."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelpress.client import AsyncClient, Client, ModelpressError

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "ModelpressError", "__version__"]


def __getattr__(name: str) -> Any:
    """The client is loaded when it is first asked for: the service and the worker import this package too."""
    if name in {"AsyncClient", "Client", "ModelpressError"}:
        from modelpress import client  # noqa: PLC0415 - see above

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
