"""Let the weights of each layer share a few values, and train those."""

from __future__ import annotations

import torch
from torch import Tensor

from modelpress.steps.training import TaughtStep
from modelpress.steps.weight_clustering import WeightClustering
from workers.engine.clustering import Clusters
from workers.engine.constraints import raw_parameter, stored_bits
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer
from workers.engine.selection import selected, tell_untouched
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil

Place = tuple[Layer, str]
"""A layer and the name of its parameter."""


@applies(WeightClustering)
def weight_clustering(step: WeightClustering, graph: Graph, context: Context) -> Graph:
    found = _cluster(step, graph, context)
    total = sum(clusters.indices.numel() for clusters in found)
    context.notes.append(
        f"{total} weights in {len(found)} tensors have at most {step.values} values a tensor; "
        f"{sum(clusters.zeros for clusters in found)} of the tensors have zeros, which stay"
    )
    context.figures["values"] = max(len(clusters.values) for clusters in found)
    if step.train or (step.train is None and context.train is not None):
        outcome = distil(step, graph, context)
        context.notes.append(f"the values are trained: {outcome.told()}")
        context.figures.update(outcome.measured())
        return graph
    _tell_untrained(step, context)
    return graph


def _cluster(step: WeightClustering, graph: Graph, context: Context) -> list[Clusters]:
    found: dict[Tensor, Clusters] = {}
    biases: dict[Tensor, list[Place]] = {}
    for layer in selected(step.layers, graph):
        reasons = {}
        for name in layer.weights:
            reason = why_not(layer, name, step.values)
            if reason is not None:
                reasons[name] = reason
                continue
            raw = raw_parameter(layer.module, name)
            clusters = found[raw].shared() if raw in found else Clusters.fit(layer.weights[name], step.values)
            found.setdefault(raw, clusters)
            layer.constrain(name, clusters)
        tell_untouched(context, layer, reasons)
        for name in _biases(layer) if step.biases else ():
            biases.setdefault(raw_parameter(layer.module, name), []).append((layer, name))
    if not found:
        told = "; ".join(f"{name}: {reason}" for name, reason in context.untouched.items())
        raise StepError(f"none of the selected layers can be clustered ({told})")
    if biases:
        _share_biases(list(biases.values()), step.values)
        context.notes.append(f"{len(biases)} biases have at most {step.values} values together")
    return list(found.values())


def _share_biases(biases: list[list[Place]], values: int) -> None:
    """All of the model have the same few values: a codebook each would weigh more than its indices."""
    firsts = [getattr(layer.module, name).detach() for (layer, name), *_ in biases]
    together = Clusters.fit(torch.cat([bias.flatten() for bias in firsts]), values)
    parts = together.indices.split([bias.numel() for bias in firsts])
    for bias, part, places in zip(firsts, parts, biases, strict=True):
        for layer, name in places:
            layer.constrain(name, Clusters(together.entries, part.view_as(bias).clone(), zeros=together.zeros))


def why_not(layer: Layer, name: str, values: int) -> str | None:
    """Why a weight cannot be clustered to so many values, or None where it can."""
    weight = layer.weights[name].detach()
    bits = stored_bits(layer.module, name)
    if not weight.isfinite().all():
        raise StepError(f"{layer.name} holds weights that are not numbers: repair the model before clustering it")
    if bits < 32:
        return f"it is stored in {bits:g} bits already"
    if any(isinstance(constraint, Clusters) for constraint in layer.constraints(name)):
        return "it shares values already"
    if weight.dtype != torch.float32:
        return f"its weights are {weight.dtype}, not float32".replace("torch.", "")
    if weight.ndim < 2:
        return "its weights are a vector: too small to be worth it"
    if weight.numel() <= values:
        return f"it has only {weight.numel()} weights"
    return None


def _biases(layer: Layer) -> list[str]:
    """Those that nothing constrains yet."""
    plain = layer.module.named_parameters(recurse=False)
    return [name for name, bias in plain if name not in layer.weights and bias.dtype == torch.float32]


def _tell_untrained(step: WeightClustering, context: Context) -> None:
    if step.train is None:
        context.notes.append("the values are not trained, because there is no training data: send some as data.train")
    idle = sorted(step.changed() & TaughtStep.model_fields.keys())
    if idle:
        context.warnings.append(f"{', '.join(idle)} had no effect: the values were not trained")
