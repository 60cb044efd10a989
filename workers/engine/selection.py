"""Which layers a step treats, and how it tells which it does not."""

from __future__ import annotations

from fnmatch import fnmatchcase

from modelpress.steps import LayerSelection, Step
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer


def selected(selection: LayerSelection, graph: Graph) -> list[Layer]:
    """Raises StepError, naming the layers that there are, where none is selected."""
    layers = list(graph.layers(selection))
    if not layers:
        names = ", ".join(layer.name for layer in graph.layers()) or "none with weights"
        raise StepError(f"no layer is selected by {', '.join(selection.include)}; the model's layers are: {names}")
    return layers


def idle_patterns(step: Step, graph: Graph) -> list[str]:
    """The patterns of a step's selection that match the name of no layer."""
    selection = getattr(step, "layers", None)
    if not isinstance(selection, LayerSelection):
        return []
    names = [layer.name for layer in graph.layers()]
    patterns = dict.fromkeys((*selection.include, *selection.exclude))
    return [pattern for pattern in patterns if pattern != "*" and not any(fnmatchcase(n, pattern) for n in names)]


def tell_untouched(context: Context, layer: Layer, reasons: dict[str, str]) -> None:
    """Say why these weights of a layer are left alone: in a note where others of it are not."""
    if len(reasons) == len(layer.weights):
        context.untouched[layer.name] = "; ".join(dict.fromkeys(reasons.values()))
        return
    for name, reason in reasons.items():
        context.notes.append(f"{layer.name}: {name} is left alone: {reason}")
