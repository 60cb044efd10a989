"""What an example takes to send and an answer takes to come back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from modelpress.models import Signature, TensorSpec
from workers.engine.dtypes import TORCH_OF_WORD


def bytes_of(specs: Sequence[TensorSpec]) -> int:
    """Of one example; dimensions that are open, the batch among them, count once."""
    return sum(
        math.prod(dim for dim in spec.shape[1:] if isinstance(dim, int)) * TORCH_OF_WORD[spec.dtype].itemsize
        for spec in specs
    )


def traffic_of(signature: Signature) -> tuple[int, int]:
    """The same: sent, and answered."""
    return bytes_of(signature.inputs), bytes_of(signature.outputs)
