"""Which form of 8-bit weights a layer gets, where there is a choice: one place, with the reasons.

Measured with ONNX Runtime 1.32, one thread, VNNI, as time of float / time of the form:

* Matrix products, integer kernel with activations quantized at run time: 0.9 for 128 × 128 at batch 1, 1.15 for
  512 × 128, 2.2 for 768 × 768 and 3 for 768 × 3072; at batch 32 1.3 to 3.4. Integers behind `DequantizeLinear` before
  a `MatMul` come near that at batch 1 only (and 0.5 to 0.9 at batch 256); before a `Gemm` they are 0.35 to 0.8.
* LSTM, integer kernel: 1.34 at batch 1 and 1.37 at 32. GRU and RNN have none; behind `DequantizeLinear` 0.73.
* Integers behind a cast and a product are folded to floats at load: 1.0 for everything, and exact.
* Convolutions of 28 × 28 with 3 × 3 kernels between quantized values, batch 1: 0.2 for 1 channel to 4 to 32, 0.4 for
  3 channels, 0.8 to 1.6 for 8, 1.2 to 2 for 16, 1.7 to 2.9 for 32. Where a first layer makes many channels, quantizing
  those afterwards costs what it loses; where it makes few, as LeNet-5's does, integers double its time.
"""

from __future__ import annotations

from torch import Tensor, nn

from modelpress.jobs import Runtime
from workers.engine.graph import Layer
from workers.engine.ops.linear import Linear
from workers.engine.ops.recurrent_cells import LSTM, Recurrent
from workers.engine.quantization.dynamic import DynamicLinear, DynamicLSTM

FEW_INPUTS, FEW_OUTPUTS = 4, 8
"""Convolutions of so few channels are faster in float, the quantization of their result included."""
INTEGER_PAYS = 1 << 15
"""Weights of a matrix from which on quantizing the activations costs less than integers gain."""


def integer_form(module: nn.Module, runtime: Runtime) -> type[nn.Module] | None:
    """The class of leaf that computes in integers, None where storing integers and computing in float is best."""
    if runtime == "cuda":
        return None  # ONNX Runtime has these kernels for CPUs only
    if isinstance(module, Linear):
        return DynamicLinear if module.weight.numel() >= INTEGER_PAYS else None
    if isinstance(module, LSTM):
        return DynamicLSTM if not module.layout else None
    return None


def too_few_channels(weight: Tensor) -> bool:
    """Whether a layer with this weight (out, in / groups, …) is a convolution too narrow for integers."""
    return weight.dim() > 2 and weight.shape[0] < FEW_OUTPUTS and weight.shape[1] <= FEW_INPUTS


def channel_axes(layer: Layer, name: str) -> tuple[int, ...]:
    """The axes of a weight along which each place has a scale: the outputs, and the directions of recurrent layers."""
    axis = layer.channel_axis(name)
    return (0, axis) if isinstance(layer.module, Recurrent) else (axis,)
