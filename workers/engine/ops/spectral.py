"""Fourier transforms, windows and mel filters: how models of sound start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from workers.engine.dtypes import TORCH_OF_ONNX
from workers.engine.ops.base import register
from workers.engine.ops.constants import check_size
from workers.engine.ops.plain import Plain, plain

if TYPE_CHECKING:
    from workers.engine.readers.onnx_node import OnnxNode

Number = Tensor | float


def dft(
    x: Tensor, length: Tensor | int | None = None, axis: Tensor | int = -2, *, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """Real signals (…, 1) or complex ones (…, 2) to spectra, and back; those of real signals can be one-sided."""
    dim = int(axis) % x.dim()
    signal = _complex(x)
    if inverse and onesided:
        count = 2 * (x.shape[dim] - 1) if length is None else int(length)
        return torch.fft.irfft(signal, count, dim).unsqueeze(-1).to(x.dtype)
    count = x.shape[dim] if length is None else int(length)
    check_size([count])
    spectrum = torch.fft.ifft(signal, count, dim) if inverse else torch.fft.fft(signal, count, dim)
    if onesided:
        spectrum = spectrum.narrow(dim, 0, count // 2 + 1)
    return torch.view_as_real(spectrum).to(x.dtype)


def stft(
    signal: Tensor,
    step: Tensor | int,
    window: Tensor | None = None,
    length: Tensor | int | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """Spectra of frames that begin every `step`: (batch, length, 1 or 2) to (batch, frames, bins, 2)."""
    given = signal.shape[1] if length is None else int(length)
    count = given if window is None else window.shape[0]
    frames = signal.unfold(1, count, int(step)).movedim(-1, 2)
    weighted = frames if window is None else frames * window.unsqueeze(1)
    return dft(weighted, None, 2, onesided=onesided)


def _complex(x: Tensor) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return wide.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(wide.contiguous())


def hann_window(size: Number, *, periodic: int = 1, output_datatype: int = 1) -> Tensor:
    return _window(size, periodic, output_datatype, (0.5, 0.5))


def hamming_window(size: Number, *, periodic: int = 1, output_datatype: int = 1) -> Tensor:
    return _window(size, periodic, output_datatype, (25 / 46, 21 / 46))


def blackman_window(size: Number, *, periodic: int = 1, output_datatype: int = 1) -> Tensor:
    return _window(size, periodic, output_datatype, (0.42, 0.5, 0.08))


def _window(size: Number, periodic: int, kind: int, terms: tuple[float, ...]) -> Tensor:
    """A sum of cosines with alternating signs. Before it is over, a periodic one is as at its start."""
    check_size([int(size)])
    device = size.device if isinstance(size, Tensor) else None
    angles = torch.arange(int(size), dtype=torch.float64, device=device) * (2 * math.pi)
    angles = angles / (int(size) if periodic else max(int(size) - 1, 1))
    waves = (term * (-1) ** place * torch.cos(angles * place) for place, term in enumerate(terms))
    return sum(waves, torch.zeros_like(angles)).to(TORCH_OF_ONNX[kind])


def mel_weights(
    bins: Number, length: Number, rate: Number, low: Number, high: Number, *, output_datatype: int = 1
) -> Tensor:
    """Triangles on the mel scale, (length // 2 + 1, bins): from one edge to the next and down to the third."""
    count, size = int(bins), int(length)
    check_size([size // 2 + 1, count + 2])
    low_mel, high_mel = (2595 * math.log10(1 + float(hertz) / 700) for hertz in (low, high))
    mels = low_mel + torch.arange(count + 2, dtype=torch.float64) * (high_mel - low_mel) / (count + 2)
    edges = ((size + 1) * 700 * (10 ** (mels / 2595) - 1) / int(rate)).floor()
    left, center, right = (edges[start : start + count] for start in range(3))
    places = torch.arange(size // 2 + 1, dtype=torch.float64).unsqueeze(1)
    rising = torch.where(center > left, (places - left) / (center - left), (places == center).double())
    falling = torch.where(center < right, (right - places) / (right - center), torch.zeros_like(rising))
    inside = (places >= left) & (places < torch.where(center < right, right, center + 1))
    weights = torch.where(places <= center, rising, falling) * inside
    peak = torch.where((places == center) & (center < right), 1.0, weights)
    return peak.to(TORCH_OF_ONNX[output_datatype])


@register
class DFT(Plain):
    """The axis was an attribute before opset 20, with another default."""

    name = "DFT"
    functions = (dft,)
    literals = frozenset({1, 2})
    attribute_before: ClassVar[dict[int, tuple[str, int]]] = {2: ("axis", 20)}
    folds = 0
    opset = 17

    def read_inputs(self, node: OnnxNode) -> list[Any]:
        inputs = super().read_inputs(node)
        if node.opset < 20 and "axis" not in node.attributes:
            inputs += [None] * (3 - len(inputs))
            inputs[2] = 1
        return inputs


plain("STFT", stft, literals=frozenset({1, 3}), opset=17)

WINDOWS: dict[str, Callable[..., Any]] = {
    "HannWindow": hann_window,
    "HammingWindow": hamming_window,
    "BlackmanWindow": blackman_window,
}
for name, function in WINDOWS.items():
    plain(name, function, literals=frozenset({0}), folds=0, opset=17)
plain("MelWeightMatrix", mel_weights, literals=frozenset(range(5)), folds=0, opset=17)
