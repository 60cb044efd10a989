"""The op table. Importing this package fills it."""

from workers.engine.ops import (
    activations,
    attention,
    constants,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    quantized,
    recurrent,
    reductions,
    resizing,
    shapes,
    softmax,
)

__all__ = [
    "activations",
    "attention",
    "constants",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "quantized",
    "recurrent",
    "reductions",
    "resizing",
    "shapes",
    "softmax",
]
