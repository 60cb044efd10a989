"""Which layers can be split at all, and the spectra of those."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from modelpress.steps.low_rank_factorization import LowRankFactorization
from workers.engine.constraints import tied_parameters
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.factorization.moments import Seen, observe
from workers.engine.factorization.splits import LESS, Split, kind_of
from workers.engine.graph import Graph, Layer
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.ops.indexing import Embedding
from workers.engine.ops.opaque import Stored
from workers.engine.quantization.nodes import calls_of
from workers.engine.selection import selected


def find_splits(
    step: LowRankFactorization, graph: Graph, context: Context, batches: Sequence[Sequence[Tensor]]
) -> list[Split]:
    """What each selected layer can be split into; of those that cannot, why not is told.

    `batches`: real inputs, by which it is judged what counts in a layer; without any, all that it could take does.
    Shapes are in `meta["shape"]` of the nodes. Raises StepError where weights are not numbers.
    """
    tied = tied_parameters(graph.module)
    kinds: list[tuple[Layer, type[Split]]] = []
    for layer in selected(step.layers, graph):
        kind, reason = kind_of(layer.module), _why_not(layer, step, tied)
        if kind is not None and reason is None:
            kinds.append((layer, kind))
        else:
            context.untouched[layer.name] = reason or f"{layer.op.name} is no product that can be taken apart"
    context.progress(0.05, "what layers take and give")
    seen = observe(graph, [layer for layer, _ in kinds], batches) if batches else {}
    found = []
    for index, (layer, kind) in enumerate(kinds):
        context.progress(0.1 + 0.4 * index / len(kinds), f"spectrum of {layer.name}")
        split = kind(layer, seen.pop(layer.name, Seen()))
        split.find_options(step.round_to)
        if split.options:
            found.append(split)
        else:
            context.untouched[layer.name] = (
                f"it is too small: no multiple of {step.round_to} as its rank leaves less than {LESS:.0%} of its cost"
            )
    return found


def _why_not(layer: Layer, step: LowRankFactorization, tied: frozenset[nn.Parameter]) -> str | None:
    module = layer.module
    if not all(bool(weight.isfinite().all()) for weight in layer.weights.values()):
        raise StepError(f"{layer.name} holds weights that are not numbers: repair the model before factorizing it")
    if isinstance(module, Stored):
        return "a part that is out of reach uses it"
    if isinstance(module, Embedding):
        if not step.embeddings:
            return "a lookup costs nothing: split, it is smaller and slower; set embeddings to have it split"
        if step.macs_left is not None:
            return "split, a table costs more multiply-accumulates, and macs_left asks for fewer"
        if module.weight.dim() != 2:
            return "it is no table of vectors"
    if isinstance(module, (Conv, ConvTranspose)) and module.groups > 1:
        return f"its {module.groups} groups are small products already, which gain nothing by this"
    if len(calls_of(layer.node)) > 1 or any(parameter in tied for parameter in module.parameters()):
        return "its weights are shared with another layer"
    if any(layer.constraints(name) for name in layer.weights):
        return "its weights are stored in a form that would be lost: factorize the model that it was made from"
    return None
