"""What of a Hugging Face folder is needed to write one again, beside the graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workers.engine.graph import Graph, Origin
from workers.engine.weights import held_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_FILE = 64 << 20
LARGEST_FILES = 256 << 20
NEVER = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".ot", ".py", ".pyc", ".gguf", ".pkl")
"""Weights in other formats, which would not be the new ones, and code."""


def origin_of(
    model: PreTrainedModel, graph: Graph, used: frozenset[str], config: dict[str, Any], folder: Path, dtype: torch.dtype
) -> Origin:
    """`used`: names of the weights that an output depends on; `dtype`: what the floats were before they came here."""
    tied: dict[str, str] = model.all_tied_weights_keys
    used = frozenset(tied.get(name, name) for name in used)
    held = {tied.get(name, name): found for name, found in held_tensors(graph).items()}
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    reached = {name: _layout(tensor, held[name].value) for name, tensor in weights.items() if name in held}
    return Origin(
        config=config,
        names=_names_in_folder(model, weights),
        tied=dict(tied),
        transposed=frozenset(name for name, layout in reached.items() if layout == "transposed"),
        unused={name: tensor for name, tensor in weights.items() if name not in used},
        lost=tuple(name for name in weights if name in used and reached.get(name) is None),
        dtype=dtype,
        files=_small_files(folder),
    )


def _layout(stored: Tensor, held: Tensor) -> str | None:
    """How the graph holds a weight; None where it is not the same one."""
    if stored.shape == held.shape and torch.equal(stored, held):
        return "same"
    if stored.dim() == 2 and stored.shape == held.shape[::-1] and torch.equal(stored.t(), held):
        return "transposed"
    return None


def _names_in_folder(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, str]:
    """transformers renames the weights of older checkpoints while loading; its own reversal tells the old names."""
    from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415 (loads slowly)

    before = {tensor.data_ptr(): name for name, tensor in revert_weight_conversion(model, dict(weights)).items()}
    names = {name: before.get(tensor.data_ptr(), name) for name, tensor in weights.items()}
    return names if len(set(names.values())) == len(names) == len(before) else {name: name for name in weights}


def _small_files(folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for file in sorted(folder.iterdir()):
        plain = file.is_file() and not file.name.endswith(NEVER) and "index.json" not in file.name
        if plain and file.stat().st_size <= LARGEST_FILE and file.name != "config.json":
            files[file.name] = file.read_bytes()
    return files if sum(map(len, files.values())) <= LARGEST_FILES else {}
