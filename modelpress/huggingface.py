"""Loads a Hugging Face folder of pruned layers, also where their sizes differ so that no config of transformers fits.

    from modelpress.huggingface import load

    model = load("folder")

A result whose `config.json` has no `modelpress` entry loads with plain `from_pretrained` as well. Needs torch,
transformers and safetensors, which nothing else in this package does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ENTRY = "modelpress"
"""Of config.json: {"removed": [paths of layers that are gone]}. The sizes of the others stand in the weights."""
OWN_WEIGHTS = "modelpress.safetensors"
"""The weights of a folder with this entry: a name that `from_pretrained` does not know."""
QUERIES = ("q_proj", "query", "q_lin", "q")
KEYS = ("k_proj", "key", "k_lin", "k")
HEADS = ("num_heads", "n_heads", "num_attention_heads")
WIDTHS = ("all_head_size", "inner_dim")


def load(folder: str | Path) -> PreTrainedModel:
    """The model in eval mode, as `from_pretrained` gives it. Raises ValueError where weights are missing."""
    folder = Path(folder)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    cls = getattr(transformers, config.architectures[0])
    if not hasattr(config, ENTRY):
        model: PreTrainedModel = cls.from_pretrained(folder, local_files_only=True)
        return model
    return build(cls, config, weights_in(folder))


def weights_in(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors by name."""
    index = folder / "model.safetensors.index.json"
    names = {OWN_WEIGHTS if (folder / OWN_WEIGHTS).exists() else "model.safetensors"}
    if index.exists():
        names = {Path(name).name for name in json.loads(index.read_text())["weight_map"].values()}
    return {name: tensor for file in sorted(names) for name, tensor in load_file(folder / file).items()}


def build(cls: type[PreTrainedModel], config: PretrainedConfig, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """The model that the config describes, resized to these weights. Raises ValueError where some are missing."""
    model = cls(config)
    removed = (getattr(config, ENTRY, None) or {}).get("removed", [])
    for path in removed:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, Absent())
    resize(model, {name: tensor.shape for name, tensor in weights.items()})
    found = model.load_state_dict(dict(weights), strict=False)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    missing = [name for name in found.missing_keys if name not in tied]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"the weights are not those of {cls.__name__}: missing {missing[:5]}, left over {found.unexpected_keys[:5]}"
        )
    model.train(mode=False)
    return model


class Absent(nn.Module):
    """A layer that was removed: what it would add is nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def resize(model: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Give parameters and buffers these shapes, and tell the layers around them. New values are undefined."""
    for path, module in model.named_modules():
        _tell_attention(module, path, shapes)
    for path, module in model.named_modules():
        changed = False
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            shape = shapes.get(f"{path}.{name}" if path else name, tensor.shape)
            if shape != tensor.shape:
                empty = torch.empty(shape, dtype=tensor.dtype)
                setattr(module, name, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty)
                changed = True
        if changed and isinstance(getattr(module, "weight", None), Tensor):
            _tell_layer(module, tuple(module.weight.shape))


def _tell_layer(module: nn.Module, shape: tuple[int, ...]) -> None:
    numbers: dict[str, Any] = {}
    if isinstance(module, nn.Linear):
        numbers = {"out_features": shape[0], "in_features": shape[1]}
    elif isinstance(module, transformers.pytorch_utils.Conv1D):
        numbers = {"nx": shape[0], "nf": shape[1]}
    elif isinstance(module, nn.Embedding):
        numbers = {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    elif isinstance(module, nn.LayerNorm):
        numbers = {"normalized_shape": shape}
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        groups = shape[0] * module.in_channels // module.out_channels if depthwise else module.groups
        numbers = {"out_channels": shape[0], "in_channels": shape[1] * groups, "groups": groups}
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 (the one name for all ranks)
        numbers = {"num_features": shape[0]}
    elif isinstance(module, nn.GroupNorm):
        numbers = {"num_channels": shape[0]}
    for name, number in numbers.items():
        setattr(module, name, number)


def _tell_attention(module: Any, path: str, shapes: Mapping[str, torch.Size]) -> None:
    """What attention layers know of their heads beside the weights; the width of a head stays."""

    def rows(child: str, axis: int = 0) -> int | None:
        shape = shapes.get(f"{path}.{child}.weight")
        return None if shape is None else shape[axis]

    query = next((name for name in QUERIES if isinstance(getattr(module, name, None), nn.Linear)), None)
    if query is not None:
        before, now = getattr(module, query).out_features, rows(query)
        if now is None:
            return
        for name in HEADS:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, getattr(module, name) * now // before)
        for name in WIDTHS:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, now)
        keys = next((found for name in KEYS if (found := rows(name)) is not None), None)
        if keys and hasattr(module, "num_key_value_groups"):
            module.num_key_value_groups = now // keys
    together = rows("c_attn", 1)
    if together is not None and isinstance(getattr(module, "split_size", None), int):
        module.split_size = together // 3
