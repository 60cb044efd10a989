"""Reads a Hugging Face folder: config.json and safetensors, through transformers' own class for it.

No code of the folder runs: the class comes from transformers by its name, `auto_map` is left out and said so, and
pickles of weights are loaded as tensors only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.readers.fitting import listed, matched
from workers.engine.readers.huggingface_origin import origin_of
from workers.engine.readers.transformers_trace import export, first_line, inputs_of, transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CONFIG = "config.json"
MAX_CONFIG = 16 << 20
SAFETENSORS, SHARDS = "model.safetensors", "model.safetensors.index.json"
OWN_WEIGHTS = "modelpress.safetensors"
"""Of a result that only our loader puts together (`modelpress.huggingface`)."""
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SLACK = 1 << 24
"""Parameters that a config may describe beyond what the files hold: buffers, tied and left-out weights."""


def read_huggingface(folder: Path, weights: Mapping[str, Tensor] | None = None) -> Graph:
    """The graph of the model in the folder, in float32, with batch and length left open.

    `weights` take the place of the folder's own, which it need not have then. Raises InvalidModelError or
    UnsupportedModelError with what the folder lacks.
    """
    notes: list[str] = []
    values = config_values(folder, notes)
    config = config_of(values)
    model = load(folder, config, weights, notes)
    graph, used = export(model, inputs_of(model, folder), notes)
    graph.notes += notes
    graph.origin = origin_of(model, graph, used, values, folder, _stored_dtype(folder, weights))
    return graph


def config_values(folder: Path, notes: list[str]) -> dict[str, Any]:
    """What config.json says, without code. Raises InvalidModelError and UnsupportedModelError."""
    path = folder / CONFIG
    if path.stat().st_size > MAX_CONFIG:
        raise InvalidModelError(f"{CONFIG} has {path.stat().st_size:,} bytes; at most {MAX_CONFIG:,} are read")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{CONFIG} is not sound JSON ({error})") from None
    if not isinstance(values, dict):
        raise InvalidModelError(f"{CONFIG} is no JSON object")
    if "quantization_config" in values:
        raise UnsupportedModelError(
            "the folder holds weights that another tool has quantized: send the model as it was before, in floats"
        )
    if values.pop("auto_map", None) is not None:
        notes.append(
            f"{CONFIG} names code of its own (auto_map), which never runs here: transformers' own class is used"
        )
    return values


def config_of(values: dict[str, Any]) -> PretrainedConfig:
    """Raises InvalidModelError or UnsupportedModelError where transformers has no model for it."""
    package = transformers()
    kind = values.get("model_type")
    known = package.models.auto.configuration_auto.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        raise UnsupportedModelError(
            f"the model type {str(kind)[:60]!r} is not in transformers {package.__version__}, and code from the "
            "folder never runs here: export the model with torch.onnx.export or torch.export.save"
        )
    try:
        config: PretrainedConfig = known[kind].from_dict(dict(values))
    except Exception as error:  # whatever a made-up config can make transformers raise
        raise InvalidModelError(f"transformers does not take {CONFIG}: {first_line(error)}") from error
    return config


def class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that config.architectures names. Raises UnsupportedModelError where transformers has no such model."""
    package = transformers()
    names = config.architectures or []
    if len(names) != 1 or not isinstance(names[0], str):
        raise UnsupportedModelError(
            f"{CONFIG} must name one class in architectures, such as BertForSequenceClassification; save the model "
            "with model.save_pretrained(folder)"
        )
    found: Any = getattr(package, names[0], None) if names[0].isidentifier() else None
    if (
        not isinstance(found, type)
        or not issubclass(found, package.PreTrainedModel)
        or not isinstance(config, getattr(found, "config_class", None) or ())
    ):
        raise UnsupportedModelError(
            f"{names[0][:80]!r} is not a {config.model_type} model of transformers {package.__version__}: export "
            "the model with torch.onnx.export or torch.export.save"
        )
    return cast("type[PreTrainedModel]", found)


def load(
    folder: Path, config: PretrainedConfig, weights: Mapping[str, Tensor] | None, notes: list[str]
) -> PreTrainedModel:
    """The model in float32 and in eval mode.

    Raises InvalidModelError, naming them, where weights are missing or have another shape.
    """
    cls = class_of(config)
    names = _names(cls, config)
    if weights is None:
        safe = _are_safetensors(folder)
        held = sum(file.stat().st_size for file in folder.glob("*.safetensors" if safe else "*.bin"))
        source: dict[str, Any] = {"pretrained_model_name_or_path": folder, "use_safetensors": safe}
    else:
        held = sum(tensor.nbytes for tensor in weights.values())
        found = matched(weights, names)
        own = {source: name for name, source in found.items()}
        renamed = {own.get(name, name): tensor for name, tensor in weights.items()}
        source = {"pretrained_model_name_or_path": None, "state_dict": renamed}
    described = sum(names.values())
    if described > 2 * held + SLACK:  # before any memory is taken
        raise InvalidModelError(
            f"{CONFIG} describes a model of {described:,} parameters, but the weights are {held:,} bytes: some are "
            "missing, or the config is another model's"
        )
    if hasattr(config, "modelpress"):
        return _resized(cls, config, folder, weights)
    try:
        loaded: Any = cls.from_pretrained(
            **source,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa" if cls._supports_sdpa else "eager",
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises of many kinds, and the weights are the user's
        raise InvalidModelError(f"transformers cannot load the weights: {first_line(error)}") from error
    model, loading = loaded
    _check_loading(cls, loading, strict=weights is not None, notes=notes)
    if loading["missing_keys"]:
        model.pooler = None
        notes.append("there are no weights for the pooler, so it was left out")
    model.config.use_cache = False
    return cast("PreTrainedModel", model.eval())


def _check_loading(cls: type, loading: Mapping[str, Any], *, strict: bool, notes: list[str]) -> None:
    """A folder may hold more than its class uses, another head say; a state dict may not. A pooler may be missing."""
    missing = sorted(loading["missing_keys"])
    unexpected = sorted(loading["unexpected_keys"])
    unlike = [
        f"{name} {tuple(found)} for {tuple(wanted)}" for name, found, wanted in sorted(loading["mismatched_keys"])
    ]
    if all(key.startswith("pooler.") for key in missing):
        missing = []
    parts = {"missing": missing, "left over": unexpected if strict else [], "of another shape": unlike}
    wrong = "; ".join(f"{what}: {listed(entries)}" for what, entries in parts.items() if entries)
    if wrong:
        raise InvalidModelError(
            f"the weights do not fit {cls.__name__} as {CONFIG} describes it; {wrong}. Name the class that was saved "
            "in architectures, or save the model again with model.save_pretrained(folder)"
        )
    if unexpected:
        notes.append(f"{cls.__name__} has no use for some of the weights: {listed(unexpected)}")


def _resized(
    cls: type[PreTrainedModel], config: PretrainedConfig, folder: Path, weights: Mapping[str, Tensor] | None
) -> PreTrainedModel:
    """A result of ours, whose layers have sizes of their own."""
    from modelpress import huggingface  # noqa: PLC0415 (it loads transformers)

    try:
        if weights is None:
            weights = huggingface.weights_in(folder)
        model = huggingface.build(cls, config, weights)
    except Exception as error:  # the config and the weights are the user's
        raise InvalidModelError(f"the pruned model cannot be put together: {first_line(error)}") from error
    model.set_attn_implementation("sdpa" if cls._supports_sdpa else "eager")
    model.config.use_cache = False
    return model


def _names(cls: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, int]:
    """Names of the weights and how many numbers each has, without taking memory for them."""
    try:
        with torch.device("meta"):
            return {name: tensor.numel() for name, tensor in cls(config).state_dict().items()}
    except Exception as error:  # whatever a made-up config can make transformers raise
        raise InvalidModelError(f"{CONFIG} is none of a {cls.__name__}: {first_line(error)}") from error


def _are_safetensors(folder: Path) -> bool:
    """Whether the weights are safetensors. Raises InvalidModelError where there are none or some are missing."""
    names = {file.name for file in folder.iterdir()}
    if OWN_WEIGHTS in names:
        return True
    if SAFETENSORS in names or SHARDS in names:
        _check_index(folder, SHARDS, names)
        return True
    if names & set(PICKLES):
        _check_index(folder, PICKLES[1], names)
        return False
    raise InvalidModelError(
        f"the folder holds {CONFIG} but no {SAFETENSORS}: send it with its weights, as model.save_pretrained(folder) "
        "writes them"
    )


def _check_index(folder: Path, index: str, names: set[str]) -> None:
    if index not in names or index.removesuffix(".index.json") in names:
        return
    try:
        files = set(json.loads((folder / index).read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise InvalidModelError(f"{index} is not sound") from None
    lacking = sorted(str(name) for name in files if name not in names)
    if lacking:
        raise InvalidModelError(f"the folder lacks files that {index} names: {listed(lacking)}")


def _stored_dtype(folder: Path, weights: Mapping[str, Tensor] | None) -> torch.dtype:
    """The one that all floats have, if it has 16 bits; else float32."""
    if weights is not None:
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
    else:
        kinds = set()
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as content:
                kinds |= {content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118 (no mapping)
    halves = {"F16": torch.float16, "BF16": torch.bfloat16, "float16": torch.float16, "bfloat16": torch.bfloat16}
    return halves.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
