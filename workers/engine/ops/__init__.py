"""The op table. Importing this package fills it."""

from workers.engine.ops import (
    activations,
    constants,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    recurrent,
    reductions,
    shapes,
)

__all__ = [
    "activations",
    "constants",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "recurrent",
    "reductions",
    "shapes",
]
