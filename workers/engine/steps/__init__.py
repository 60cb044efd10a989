"""How each step of the catalogue is done: one module a step, bound to its options by `@applies`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelpress.steps import Step

if TYPE_CHECKING:
    from workers.engine.context import Context
    from workers.engine.graph import Graph

    Apply = Callable[[Any, Graph, Context], Graph]

APPLY: dict[type[Step], Apply] = {}


def applies(step: type[Step]) -> Callable[[Apply], Apply]:
    """Bind a function `(step, graph, context) -> graph` to the options it carries out."""

    def bind(function: Apply) -> Apply:
        if step in APPLY:
            raise ValueError(f"{step.__name__} is applied twice")
        APPLY[step] = function
        return function

    return bind
