"""What training graphs end in; some exporters leave it in the file."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from workers.engine.ops.plain import plain

NOWHERE = -100
"""PyTorch's own word for a class that does not count, where the file has none."""


def negative_log_likelihood(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> Tensor:
    skipped = NOWHERE if ignore_index is None else ignore_index
    return F.nll_loss(x, target.long(), weight, ignore_index=skipped, reduction=reduction)


def cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    """The loss, and the logarithms of the shares."""
    shares = torch.log_softmax(x, 1)
    return negative_log_likelihood(shares, target, weight, ignore_index=ignore_index, reduction=reduction), shares


plain("NegativeLogLikelihoodLoss", negative_log_likelihood, words=frozenset({"mean", "sum"}))
plain("SoftmaxCrossEntropyLoss", cross_entropy, words=frozenset({"mean", "sum"}), results=2, required=1)
