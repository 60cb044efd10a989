"""Which form of 8-bit weights a layer gets, where there is a choice: one place, with the reasons.

Measured with ONNX Runtime 1.32, one thread, VNNI, as time of float / time of the form:

* Matrix products, integer kernel with activations quantized at run time: 0.9 for 128 × 128 at batch 1, 1.15 for
  512 × 128, 2.2 for 768 × 768 and 3 for 768 × 3072; at batch 32 1.3 to 3.4. Integers behind `DequantizeLinear` before
  a `MatMul` come near that at batch 1 only (and 0.5 to 0.9 at batch 256); before a `Gemm` they are 0.35 to 0.8.
* LSTM, integer kernel: 1.34 at batch 1 and 1.37 at 32. GRU and RNN have none; behind `DequantizeLinear` 0.73.
* Integers behind a cast and a product are folded to floats at load: 1.0 for everything, and exact.
* `MatMulNBits` that rounds its inputs to 8 bits block by block, of 8, 4, 2 bits in blocks of 128: 384 × 384 1.4, 1.8,
  1.5 at batch 1 and 1.1, 1.1, .9 at 16; 384 × 1536 2.2, 3.1, 3 and 1.9, 2, 1.7; 768 × 768 2.2, 3.2, 3.1 and 2, 2.2,
  1.8. In blocks of 32: 384 × 384 1.3, 1.6, 1.2 and 1, .95, .5; 768 × 768 2, 2.9, 2.3 and 1.7, 1.7, 1 (at batch 128
  1.3, 1.15, .6). 128 × 128 .4 to 1. With inputs left as they are, 4 bits are .6 to 2, the others .1 to .6.
* First convolutions, 3 × 3, integers with the quantization of their input against floats with that of their result
  and an integer layer behind them: 1.3 to 2.4 times slower for 1 channel to 16, 1.5 to 1.8 to 32, 1.0 to 1.3 to 64; for
  3 channels 1.6, 1.3 and 0.7 to 0.95; for 8 channels to 32 0.67. LeNet-5's are the first kind.
* Depthwise convolutions, per result: 0.2 to 0.35 ns where the channels are a multiple of 16, else 0.65 to 0.85, and in
  floats 0.6 to 0.7.
"""

from __future__ import annotations

from torch import nn

from modelpress.jobs import Runtime
from workers.engine.graph import Layer
from workers.engine.ops.convolution import Conv
from workers.engine.ops.linear import Linear
from workers.engine.ops.recurrent_cells import LSTM, Recurrent
from workers.engine.quantization.dynamic import DynamicLinear, DynamicLSTM

FEW_INPUTS, FEW_OUTPUTS = 4, 32
"""Convolutions of so few channels are faster in float, the quantization of their result included."""
INTEGER_PAYS = 1 << 15
"""Weights of a matrix from which on quantizing the activations costs less than integers gain."""

PRODUCT_BITS = (8, 4, 2)
FINEST_PRODUCT = 16
"""Weights in a block, at least, of the kernels for packed integers."""
COARSE_BLOCK = 128
PRODUCT_PAYS = {8: 1 << 17, 4: 1 << 17, 2: 1 << 18}
FINE_PRODUCT_PAYS = {8: 1 << 18, 4: 1 << 18, 2: 1 << 40}
"""Weights of a matrix from which on packed integers are multiplied faster than floats, in coarse and fine blocks."""


def integer_form(module: nn.Module, runtime: Runtime) -> type[nn.Module] | None:
    """The class of leaf that computes in integers, None where storing integers and computing in float is best."""
    if runtime == "cuda":
        return None  # ONNX Runtime has these kernels for CPUs only
    if isinstance(module, Linear):
        return DynamicLinear if module.weight.numel() >= INTEGER_PAYS else None
    if isinstance(module, LSTM):
        return DynamicLSTM if not module.layout else None
    return None


def product_pays(weights: int, width: int, block: int) -> bool:
    """Whether a matrix of so many weights, of so many bits in blocks, is multiplied faster as it is stored."""
    if width not in PRODUCT_BITS or block < FINEST_PRODUCT or block & (block - 1):
        return False
    return weights >= (PRODUCT_PAYS if block >= COARSE_BLOCK else FINE_PRODUCT_PAYS)[width]


def too_few_channels(module: nn.Module) -> bool:
    """Whether a layer is a convolution too narrow for integers."""
    if not isinstance(module, Conv) or module.groups > 1:
        return False
    outputs, inputs = module.weight.shape[:2]
    return inputs <= FEW_INPUTS and outputs <= FEW_OUTPUTS


def channel_axes(layer: Layer, name: str) -> tuple[int, ...]:
    """The axes of a weight along which each place has a scale: the outputs, and the directions of recurrent layers."""
    axis = layer.channel_axis(name)
    return (0, axis) if isinstance(layer.module, Recurrent) else (axis,)
