"""Reads a Hugging Face folder (config.json and safetensors) through transformers, torch.export and the aten table.

No code of the folder runs: the class comes from transformers by its name, `auto_map` is left out and said so.
An exported program keeps the user's names of weights and modules exactly and is made in about a second; an ONNX
export of the same models takes several and loses the names of weights that it transposes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.readers.pt2 import Words, read_program

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CONFIG = "config.json"
MAX_CONFIG = 16 << 20
ATTENTION = "modelpress"
"""The name under which transformers knows our way of masking."""
EXAMPLES, LENGTH = 3, 11
"""Of the traced inputs: odd, so that no other dimension of a model is likely to be equal."""
TEXT = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")
SAFETENSORS, SHARDS = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SLACK = 1 << 24
"""Parameters that a config may describe beyond what the files hold: buffers, tied and left-out weights."""
NOT_ANSWERS = ("past_key_values", "loss", "encoder_last_hidden_state", "attentions", "hidden_states")


@dataclass(frozen=True)
class Input:
    name: str
    example: Tensor
    dims: Mapping[int, str]
    """Axes that may have any length, and their names."""


def read_huggingface(folder: Path) -> Graph:
    """The graph of the model in the folder, weights in float32, with batch and length left open.

    Raises InvalidModelError or UnsupportedModelError with what the folder lacks.
    """
    notes: list[str] = []
    config = read_config(folder, notes)
    model = load(folder, config, notes)
    graph = export(model, inputs_of(model, folder), notes)
    graph.notes += notes
    return graph


def read_config(folder: Path, notes: list[str]) -> PretrainedConfig:
    """Raises InvalidModelError or UnsupportedModelError where transformers has no model for it."""
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
    transformers = _transformers()
    kind = values.get("model_type")
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        raise UnsupportedModelError(
            f"the model type {str(kind)[:60]!r} is not in transformers {transformers.__version__}, and code from the "
            "folder never runs here: export the model with torch.onnx.export or torch.export.save"
        )
    try:
        config: PretrainedConfig = known[kind].from_dict(values)
    except Exception as error:  # whatever a made-up config can make transformers raise
        raise InvalidModelError(f"transformers does not take {CONFIG}: {_first_line(error)}") from error
    return config


def class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that config.architectures names. Raises UnsupportedModelError where transformers has no such model."""
    transformers = _transformers()
    names = config.architectures or []
    if len(names) != 1 or not isinstance(names[0], str):
        raise UnsupportedModelError(
            f"{CONFIG} must name one class in architectures, such as BertForSequenceClassification; save the model "
            "with model.save_pretrained(folder)"
        )
    found = getattr(transformers, names[0], None) if names[0].isidentifier() else None
    if (
        not isinstance(found, type)
        or not issubclass(found, transformers.PreTrainedModel)
        or not isinstance(config, found.config_class or ())
    ):
        raise UnsupportedModelError(
            f"{names[0][:80]!r} is not a {config.model_type} model of transformers {transformers.__version__}: export "
            "the model with torch.onnx.export or torch.export.save"
        )
    return found


def load(folder: Path, config: PretrainedConfig, notes: list[str]) -> PreTrainedModel:
    """The model with the folder's weights, in float32 and in eval mode.

    Raises InvalidModelError, naming them, where weights are missing or have another shape.
    """
    cls = class_of(config)
    source = _source(folder)
    check_size(cls, config, source, folder)
    try:
        model, found = cls.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=_attention(cls),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=source,
            weights_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises of many kinds, and the weights are the user's
        raise InvalidModelError(f"transformers cannot load the folder: {_first_line(error)}") from error
    missing = sorted(found["missing_keys"])
    if missing and not all(key.startswith("pooler.") for key in missing):
        raise InvalidModelError(
            f"the folder lacks weights of {cls.__name__}: {_listed(missing)}. Name the class that was saved in "
            f"architectures of {CONFIG}, or save the model again with model.save_pretrained(folder)"
        )
    if missing:
        model.pooler = None
        notes.append("the folder holds no weights for the pooler, so it was left out")
    if found["unexpected_keys"]:
        notes.append(f"{cls.__name__} has no use for some weights: {_listed(sorted(found['unexpected_keys']))}")
    model.config.use_cache = False
    return model.eval()


def check_size(cls: type[PreTrainedModel], config: PretrainedConfig, safetensors: bool, folder: Path) -> None:
    """Raises InvalidModelError where the config describes much more than the files hold, before any memory is taken."""
    try:
        with torch.device("meta"):
            described = sum(parameter.numel() for parameter in cls(config).parameters())
    except Exception as error:  # whatever a made-up config can make transformers raise
        raise InvalidModelError(
            f"transformers cannot build {cls.__name__} from {CONFIG}: {_first_line(error)}"
        ) from error
    pattern = "*.safetensors" if safetensors else "*.bin"
    held = sum(file.stat().st_size for file in folder.glob(pattern))
    if described > 2 * held + SLACK:
        raise InvalidModelError(
            f"{CONFIG} describes a model of {described:,} parameters, but the weights are {held:,} bytes: the folder "
            "is incomplete, or the config is another model's"
        )


def inputs_of(model: PreTrainedModel, folder: Path) -> tuple[Input, ...]:
    """What the model is fed with, as its tokenizer or image processor makes it.

    Raises UnsupportedModelError where it is neither text, images nor sound.
    """
    config, name = model.config, model.main_input_name
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        height, width = _pair(getattr(vision, "image_size", 224))
        return (Input(name, torch.randn(EXAMPLES, getattr(vision, "num_channels", 3), height, width), {0: "batch"}),)
    if name == "input_values":
        return (Input(name, torch.randn(EXAMPLES, 4000), {0: "batch", 1: "length"}),)
    if name != "input_ids":
        raise UnsupportedModelError(
            f"{type(model).__name__} takes {name!r}; Hugging Face folders are read for text, images and sound: export "
            "the model with torch.onnx.export or torch.export.save"
        )
    taken = signature(type(model).forward).parameters
    wanted = _tokenizer_inputs(config, folder)
    names = [name for name in TEXT if name in taken and name in wanted]
    dims = {0: "batch", 1: "length"}
    return tuple(
        Input(
            name,
            torch.ones(EXAMPLES, LENGTH, dtype=torch.int64) * (name != "token_type_ids"),
            {0: "batch", 1: "decoder_length"} if name.startswith("decoder") else dims,
        )
        for name in names
    )


def export(model: PreTrainedModel, inputs: tuple[Input, ...], notes: list[str]) -> Graph:
    """Raises UnsupportedModelError where torch.export cannot follow the model or the op table lacks what it calls."""
    answers = _Answers(model, tuple(given.name for given in inputs))
    examples = tuple(given.example for given in inputs)
    with torch.no_grad():
        answers.find(examples)
        program = _traced(answers, inputs, examples, notes)
    from torch._export.serde.serialize import serialize  # noqa: PLC0415 (loads slowly; no public form in memory)

    written = serialize(
        program, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False
    ).exported_program
    words = Words(
        inputs=tuple(given.name for given in inputs),
        outputs=answers.names,
        dims=tuple(given.dims for given in inputs),
        prefix="model.",
    )
    return read_program(json.loads(written), {**program.constants, **program.state_dict}, words)


class _Answers(nn.Module):
    """The model with its inputs in order, and its answers as plain tensors."""

    def __init__(self, model: PreTrainedModel, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.names: tuple[str, ...] = ()

    def find(self, examples: tuple[Tensor, ...]) -> None:
        """Learn the names of the tensors among the answers by running the model once."""
        answers = self.model(**dict(zip(self.inputs, examples, strict=True)), return_dict=True)
        self.names = tuple(
            name for name, value in answers.items() if isinstance(value, Tensor) and name not in NOT_ANSWERS
        )
        if not self.names:
            raise UnsupportedModelError(f"{type(self.model).__name__} answers no plain tensors")

    def forward(self, *examples: Tensor) -> tuple[Tensor, ...]:
        answers = self.model(**dict(zip(self.inputs, examples, strict=True)), return_dict=True)
        return tuple(answers[name] for name in self.names)


def _traced(
    answers: _Answers, inputs: tuple[Input, ...], examples: tuple[Tensor, ...], notes: list[str]
) -> torch.export.ExportedProgram:
    """With every dimension left open that can be; the batch at least."""
    kinds = (torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO)
    for kind in kinds:
        shapes = tuple(dict.fromkeys(given.dims, kind) for given in inputs)
        try:
            program = torch.export.export(answers, examples, dynamic_shapes=(shapes,))
        except Exception as error:  # noqa: BLE001  # torch.export raises of many kinds, and the model is the user's
            failure = error
            continue
        if kind is torch.export.Dim.AUTO:
            notes.append("the model computes with some of its sizes in a way that fixes them: they are as traced")
        return program
    raise UnsupportedModelError(
        f"torch.export cannot follow {type(answers.model).__name__} ({_first_line(failure)}): export the model with "
        "torch.onnx.export"
    ) from failure


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    device: Any = "cpu",
    **_: Any,
) -> Tensor | None:
    """Which keys (…, queries, keys) may be looked at: by position only where that matters, and by the user's mask.

    Unlike transformers' own it neither looks at the values of the mask, which a trace cannot, nor gathers from it.
    """
    from transformers.masking_utils import bidirectional_mask_function  # noqa: PLC0415 (loads slowly)

    by_position = None
    if mask_function is not bidirectional_mask_function:
        batch, heads = torch.arange(batch_size, device=device), torch.arange(1, device=device)
        queries = torch.arange(q_length, device=device) + q_offset
        keys = torch.arange(kv_length, device=device) + kv_offset
        by_position = mask_function(
            batch[:, None, None, None],
            heads[None, :, None, None],
            queries[None, None, :, None],
            keys[None, None, None, :],
        )
    if attention_mask is None:
        return by_position
    by_user = attention_mask.to(torch.bool)[:, None, None, :]
    return by_user if by_position is None else by_position & by_user


def _transformers() -> Any:
    """The package, loaded when the first folder is read; it must never look for anything on the network."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    import transformers  # noqa: PLC0415 (as the docstring says)

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _attention(cls: type[PreTrainedModel]) -> str:
    """Ours where the model lets the attention be chosen, else its own."""
    if not (cls._supports_sdpa and cls._supports_attention_backend):
        return "eager"
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415 (loads slowly)
    from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415 (as above)

    AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    AttentionMaskInterface.register(ATTENTION, _mask)
    return ATTENTION


def _source(folder: Path) -> bool:
    """Whether the weights are safetensors. Raises InvalidModelError where there are none or some are missing."""
    names = {file.name for file in folder.iterdir()}
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
        raise InvalidModelError(f"the folder lacks files that {index} names: {_listed(lacking)}")


def _tokenizer_inputs(config: PretrainedConfig, folder: Path) -> set[str]:
    """What the model's tokenizer makes: as its own config says, else as its class does."""
    transformers = _transformers()
    always = {"input_ids", "attention_mask"}
    if config.is_encoder_decoder:
        always.add("decoder_input_ids")
    own = folder / "tokenizer_config.json"
    if own.exists() and own.stat().st_size < MAX_CONFIG:
        try:
            names = json.loads(own.read_bytes()).get("model_input_names")
        except (ValueError, AttributeError, RecursionError):
            names = None
        if isinstance(names, list):
            return always | {name for name in names if name in TEXT}
    known = transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING_NAMES.get(config.model_type)
    made = getattr(getattr(transformers, str(known), None), "model_input_names", ())
    segments = "token_type_ids" in made and getattr(config, "type_vocab_size", 0) > 1
    return always | ({"token_type_ids"} if segments else set())


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
