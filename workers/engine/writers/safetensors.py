"""Weights alone: a Hugging Face folder where the model came as one, else plain safetensors under the file's names.

Plain ones go into the user's own code, `model.load_state_dict(load_file(path))`; matrices are laid out as PyTorch has
them, (out, in). Codebooks and integer grids are unfolded to the floats that they stand for.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from workers.engine.encodings import HalfFloat
from workers.engine.errors import UnsupportedModelError, UnusableResultError
from workers.engine.graph import Graph
from workers.engine.ops.opaque import Opaque, Stored
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.two_levels import TwoLevels
from workers.engine.weights import held_tensors
from workers.engine.writers import writes
from workers.engine.writers.huggingface import write_folder
from workers.engine.writers.onnx import encode


def check_weights(graph: Graph, path: Path, _: Path) -> bool:
    """Plain weights tensor by tensor; a folder is a model, which the readers read."""
    if graph.origin is not None:
        return False
    wanted, found = stored_weights(graph), load_file(path)
    if wanted.keys() != found.keys() or not all(torch.equal(wanted[name], found[name]) for name in wanted):
        raise UnusableResultError("read back, its tensors are not those of the result; please report it")
    return True


@writes("safetensors", check_weights)
def write_safetensors(graph: Graph, path: Path) -> None:
    """Raises UnsupportedModelError where weights alone would not be the model."""
    if any(isinstance(module, (FakeQuantize, TwoLevels)) for module in graph.module.modules()):
        raise UnsupportedModelError(
            "safetensors hold weights only, and this model's activations are quantized too: take it as onnx"
        )
    weights = stored_weights(graph)
    if graph.origin is not None:
        write_folder(graph, graph.origin, weights, path)
        return
    if any(isinstance(module, (Opaque, Stored)) for module in graph.module.modules()):
        raise UnsupportedModelError(
            "parts of this model are kept as ONNX nodes, whose weights have no place of their own: take it as onnx"
        )
    path.write_bytes(save(weights, {"format": "pt"}))


def stored_weights(graph: Graph) -> dict[str, Tensor]:
    """Every weight as the graph uses it, by the user's name, sorted; 16-bit ones in 16 bits."""
    return {name: _stored(held.owner, held.name) for name, held in sorted(held_tensors(graph).items())}


def _stored(owner: nn.Module, name: str) -> Tensor:
    value, encoding = encode(owner, name)
    if isinstance(encoding, HalfFloat):
        value = encoding.values
    return value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
