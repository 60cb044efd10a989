"""Which weights training can move at all: parts that ONNX Runtime computes, and choices, pass no gradient."""

from __future__ import annotations

import torch
from torch import nn

from workers.engine.batching import batch_of, fixed_batch, on_device, training_data
from workers.engine.constraints import raw_parameter
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.sparsity import Pruned

FEW = 2
"""Examples that tell."""


class Reach:
    """What the gradient of some answer reaches. Raises StepError without training data."""

    def __init__(self, graph: Graph, context: Context) -> None:
        with on_device(graph, context.device):
            probe = graph.copy()
            size = fixed_batch(graph, context) or FEW
            batch = batch_of(training_data(context), torch.arange(size), context.device)
        probe.module.train()  # which recurrent layers on CUDA need for their gradients
        for module in probe.module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 (the base has no public name)
                module.eval()  # one example has no statistics
        copies = [parameter for parameter in probe.module.parameters() if parameter.is_floating_point()]
        for parameter in copies:
            parameter.requires_grad_()
        answers = [answer.sum() for answer in probe(*batch.inputs) if answer.requires_grad]
        found = torch.autograd.grad(answers, copies, allow_unused=True) if answers else [None] * len(copies)
        reached = {id(parameter) for parameter, gradient in zip(copies, found, strict=True) if gradient is not None}
        pairs = zip(graph.module.parameters(), probe.module.parameters(), strict=True)
        self._parameters: set[nn.Parameter] = {own for own, other in pairs if id(other) in reached}

    def why_not(self, weight: Pruned) -> str | None:
        """Why a step that prunes by training leaves a weight alone."""
        if raw_parameter(weight.layer.module, weight.name) in self._parameters:
            return None
        return "no gradient reaches it from the answers, so that training does not move it"
