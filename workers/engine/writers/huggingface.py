"""A Hugging Face folder, zipped: config.json, safetensors, and the small files that came with the model."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from modelpress.models import TensorSpec
from workers.engine.errors import UnsupportedModelError, UnusableResultError
from workers.engine.graph import Graph, Origin
from workers.engine.readers.huggingface import OWN_WEIGHTS, class_of, config_of
from workers.engine.readers.transformers_trace import EXAMPLES, LENGTH
from workers.engine.weights import held_tensors
from workers.engine.writers.huggingface_config import describe, shapes_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENTRY = "modelpress"
"""In config.json, of models that need `modelpress.huggingface.load`."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Lists in configs with one entry a layer."""
BLOCK = re.compile(r"(.*?)\.(\d+)\.(.*)")
EPOCH = (1980, 1, 1, 0, 0, 0)
TOLERANCE, HALF_TOLERANCE = 1e-3, 2e-2
"""Relative errors of answers; the second where weights are stored in 16 bits."""


@dataclass(frozen=True)
class Folder:
    config: dict[str, Any]
    names: dict[str, str]
    """New names of the weights by those in the state dict before."""
    plain: bool
    """Whether `from_pretrained` loads it."""


def write_folder(graph: Graph, origin: Origin, held: Mapping[str, Tensor], path: Path) -> None:
    """`held`: the graph's weights. Raises UnsupportedModelError where the model's class has no place for one."""
    cls = class_of(config_of(dict(origin.config)))
    weights = _weights(graph, origin, held)
    folder = _described(cls, origin, weights)
    _check(cls, graph, folder, weights)
    stored = {
        _in_folder(name, folder.names[name], origin.names) if folder.plain else name: tensor
        for name, tensor in weights.items()
    }
    files = {
        **origin.files,
        "config.json": (json.dumps(folder.config, indent=2, sort_keys=True) + "\n").encode(),
        # `from_pretrained` would make up the layers that are gone: it finds no weights there, and says so
        "model.safetensors" if folder.plain else OWN_WEIGHTS: save(dict(sorted(stored.items())), {"format": "pt"}),
    }
    _zip(path, files)


def needs_own_loader(path: Path) -> bool:
    """Whether only `modelpress.huggingface.load` loads the folder: no configuration of transformers says its sizes."""
    with zipfile.ZipFile(path) as archive:
        return ENTRY in json.loads(archive.read("config.json"))


def _weights(graph: Graph, origin: Origin, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name in the model's state dict and laid out as there, in the order there."""
    if origin.lost:
        raise UnsupportedModelError(
            f"weights of this model were computed with while it was read, so they cannot be given back: "
            f"{', '.join(origin.lost[:5])}; take it as onnx or pt2"
        )
    found = {origin.tied.get(name, name): tensor for name, tensor in held.items()}
    made = [
        name
        for name, where in held_tensors(graph).items()
        if where.node.op == "call_module" and origin.tied.get(name, name) not in origin.names
    ]
    if made:
        raise UnsupportedModelError(
            f"a step, or calling a layer several times, has made weights that {origin.config['architectures'][0]} has "
            f"no place for: {', '.join(made[:5])}; take the result as onnx or pt2"
        )
    weights = {}
    for name in origin.names:
        tensor = found.get(name)
        if tensor is None:
            if name in origin.unused:
                weights[name] = origin.unused[name]
            continue
        if name in origin.transposed:
            tensor = tensor.t().contiguous()
        weights[name] = tensor.to(origin.dtype) if tensor.dtype is torch.float32 else tensor
    return weights


def _described(cls: type[PreTrainedModel], origin: Origin, weights: dict[str, Tensor]) -> Folder:
    """The config for these weights: as it was, with other numbers, or with the entry that only our own loader reads."""
    values = {key: value for key, value in origin.config.items() if key != ENTRY}
    before = shapes_of(cls, values)
    if before is None:
        raise UnusableResultError("transformers does not build the model that it read; please report it")
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if shapes == before:
        return Folder(values, {name: name for name in weights}, plain=True)
    names, fewer = _renumbered(values, list(before), list(weights))
    described = describe(cls, {**values, **fewer}, {names[name]: shape for name, shape in shapes.items()})
    if described is not None:
        return Folder({**values, **fewer, **described}, names, plain=True)
    gone = [name.rpartition(".")[0] for name in before if name not in weights]
    still = {name.rpartition(".")[0] for name in weights}
    entry = {
        "removed": sorted({path for path in gone if path not in still}),
        "sizes": {name: list(shape) for name, shape in sorted(shapes.items()) if before.get(name) != shape},
    }
    return Folder({**values, ENTRY: entry}, {name: name for name in weights}, plain=False)


def _renumbered(values: dict[str, Any], before: list[str], now: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """New names where whole blocks are gone, and the numbers of the config that say so."""
    blocks, left = _blocks(before), _blocks(now)
    names = {name: name for name in now}
    fewer: dict[str, Any] = {}
    for container, numbers in blocks.items():
        kept = sorted(left.get(container, set()))
        count = next((name for name in LAYERS if values.get(name) == len(numbers)), None)
        if len(kept) == len(numbers) or not kept or count is None:
            continue
        order = {number: place for place, number in enumerate(kept)}
        for name in now:
            found = BLOCK.fullmatch(name)
            if found and found[1] == container:
                names[name] = f"{container}.{order[int(found[2])]}.{found[3]}"
        fewer[count] = len(kept)
        for name in PER_LAYER:
            if isinstance(values.get(name), list) and len(values[name]) == len(numbers):
                fewer[name] = [values[name][number] for number in kept]
    return names, fewer


def _blocks(names: list[str]) -> dict[str, set[int]]:
    """Numbers of the blocks in each list of modules."""
    blocks: dict[str, set[int]] = {}
    for name in names:
        found = BLOCK.fullmatch(name)
        if found:
            blocks.setdefault(found[1], set()).add(int(found[2]))
    return blocks


def _in_folder(old: str, new: str, names: Mapping[str, str]) -> str:
    """The name that the folder had for a weight, with the new number of its block."""
    name = names[old]
    before, after = BLOCK.fullmatch(old), BLOCK.fullmatch(new)
    if before is None or after is None or before[2] == after[2]:
        return name
    return name.replace(f".{before[2]}.", f".{after[2]}.", 1)


def _check(cls: type[PreTrainedModel], graph: Graph, folder: Folder, weights: dict[str, Tensor]) -> None:
    """Load what is about to be written and compare its answers: a config can say less than the weights need."""
    try:
        _compare(cls, graph, folder, weights)
    except UnusableResultError:
        raise
    except Exception as error:  # every class of transformers fails in its own way where sizes do not go together
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(
            f"transformers has no {cls.__name__} of which such parts are gone ({reason[:200]}); "
            "take the result as onnx or pt2"
        ) from error


def _compare(cls: type[PreTrainedModel], graph: Graph, folder: Folder, weights: dict[str, Tensor]) -> None:
    config = config_of(folder.config)
    named = {folder.names[name]: tensor.float() for name, tensor in weights.items()}
    if folder.plain:
        model = cls.from_pretrained(None, config=config, state_dict=named, dtype=torch.float32)
    else:
        from modelpress import huggingface  # noqa: PLC0415 (it loads transformers)

        model = huggingface.build(cls, config, named)
    inputs = tuple(_example(spec, getattr(config, "vocab_size", 2)) for spec in graph.inputs)
    with torch.no_grad():
        wanted = graph(*inputs)
        found = model.eval()(**dict(zip((spec.name for spec in graph.inputs), inputs, strict=True)), return_dict=True)
    for spec, value in zip(graph.outputs, wanted, strict=True):
        error = float((found[spec.name] - value).norm() / value.norm().clamp(min=1e-6))
        if not error < (
            TOLERANCE if all(tensor.dtype.itemsize == 4 for tensor in weights.values()) else HALF_TOLERANCE
        ):
            raise UnusableResultError(
                f"written for transformers, the output {spec.name!r} would differ by {error:.1%}; take the result as "
                "onnx or pt2, and please report it"
            )


def _example(spec: TensorSpec, vocabulary: int) -> Tensor:
    sizes = [
        size if isinstance(size, int) else EXAMPLES if axis == 0 else LENGTH for axis, size in enumerate(spec.shape)
    ]
    generator = torch.Generator().manual_seed(0)
    if not spec.dtype.startswith("int"):
        return torch.randn(sizes, generator=generator)
    if spec.name.endswith("input_ids"):
        return torch.randint(0, vocabulary, sizes, generator=generator)
    return torch.full(sizes, int(spec.name.endswith("mask")))


def _zip(path: Path, files: Mapping[str, bytes]) -> None:
    """Without compression, which weights do not take, and without the time of day."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content)
