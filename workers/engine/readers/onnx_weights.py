"""Other weights for a graph that was read from ONNX, by the names that exporters leave there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from workers.engine.graph import Graph
from workers.engine.ops.normalization import BatchNorm
from workers.engine.readers.fitting import fit
from workers.engine.weights import DOTTED, held_tensors


def replace_weights(graph: Graph, weights: Mapping[str, Tensor]) -> None:
    """In place. Raises InvalidModelError that lists what does not fit."""
    held = held_tensors(graph)
    wanted = {
        name: found.value.shape
        for name, found in held.items()
        if name in weights or found.node.op == "call_module" or _is_weight(name, found.owner, found.name)
    }
    fitting = fit(weights, wanted, where="the ONNX file", reason=_folded(graph, weights))
    for name, tensor in fitting.items():
        held[name].replace(tensor)


def _is_weight(name: str, owner: nn.Module, attribute: str) -> bool:
    return DOTTED.fullmatch(name) is not None and isinstance(getattr(owner, attribute), nn.Parameter)


def _folded(graph: Graph, weights: Mapping[str, Tensor]) -> str:
    """What is most often the matter, where it is."""
    trained = any(name.endswith("running_mean") for name in weights)
    if not trained or any(isinstance(module, BatchNorm) for module in graph.module.modules()):
        return ""
    return (
        ": the weights have batch norms, which the exporter has folded into the convolutions of that file, so they "
        "cannot be told apart. Upload the model as .pt2 (torch.export.save) instead, or export it to ONNX with "
        "training=torch.onnx.TrainingMode.PRESERVE"
    )
