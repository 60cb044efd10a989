"""A transformers model as a graph: what it is fed with, what it answers, and the trace in between.

Traced by torch.export and read by the aten table: names of weights and modules stay exactly the user's. By way of an
ONNX export, unoptimized and read again, the same model takes three times as long.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workers.engine.errors import UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.readers.pt2 import Words, read_program

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

EXAMPLES, LENGTH, SAMPLES = 3, 11, 4001
"""Of the traced inputs: odd, so that no other dimension of a model is likely to be equal."""
TEXT = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")
NOT_ANSWERS = ("past_key_values", "loss", "encoder_last_hidden_state", "attentions", "hidden_states")
MAX_TOKENIZER_CONFIG = 16 << 20
PREFIX = "model."
"""Of names inside `_Answers`."""


@dataclass(frozen=True)
class Input:
    name: str
    example: Tensor
    dims: Mapping[int, str]
    """Axes that may have any length, and their names."""


def transformers() -> Any:
    """The package, loaded when the first folder is read; it must never look for anything on the network."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    import transformers as package  # noqa: PLC0415 (as the docstring says)

    package.logging.set_verbosity_error()
    package.logging.disable_progress_bar()
    return package


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


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
        return (Input(name, torch.randn(EXAMPLES, SAMPLES), {0: "batch", 1: "length"}),)
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


def export(model: PreTrainedModel, inputs: tuple[Input, ...], notes: list[str]) -> tuple[Graph, frozenset[str]]:
    """The graph, and the names of the weights that it depends on.

    Raises UnsupportedModelError where torch.export cannot follow the model or the op table lacks what it calls.
    """
    answers = _Answers(model, tuple(given.name for given in inputs))
    examples = tuple(given.example for given in inputs)
    with torch.no_grad(), _masks_by_position():
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
        prefix=PREFIX,
    )
    graph = read_program(json.loads(written), {**program.constants, **program.state_dict}, words)
    return graph, _used(program)


def _used(program: torch.export.ExportedProgram) -> frozenset[str]:
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    given = [node for node in program.graph.find_nodes(op="placeholder") if node.users]
    return frozenset(names[node.name].removeprefix(PREFIX) for node in given if node.name in names)


class _Answers(nn.Module):
    """The model with its inputs in order, and its answers as plain tensors."""

    def __init__(self, model: PreTrainedModel, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.names: tuple[str, ...] = ()

    def find(self, examples: tuple[Tensor, ...]) -> None:
        """Learn the names of the tensors among the answers by running the model once."""
        try:
            answers = self.model(**dict(zip(self.inputs, examples, strict=True)), return_dict=True)
        except Exception as error:  # models say in many ways that they need more than this
            raise UnsupportedModelError(
                f"{type(self.model).__name__} does not run on {', '.join(self.inputs)} alone ({first_line(error)}): "
                "export the model with torch.onnx.export or torch.export.save"
            ) from error
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
        f"torch.export cannot follow {type(answers.model).__name__} ({first_line(failure)}): export the model with "
        "torch.onnx.export"
    ) from failure


@contextmanager
def _masks_by_position() -> Iterator[None]:
    """Within, transformers makes its attention masks by `_mask`."""
    from transformers.masking_utils import (  # noqa: PLC0415 (loads slowly)
        ALL_MASK_ATTENTION_FUNCTIONS,
        AttentionMaskInterface,
    )

    own = {"sdpa": _mask, "eager": _additive_mask}
    before = {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in own}
    for name, function in own.items():
        AttentionMaskInterface.register(name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            AttentionMaskInterface.register(name, function)


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
            batch[:, None, None, None], heads[:, None, None], queries[:, None], keys[None, None, None, :]
        )
    if attention_mask is None:
        return by_position
    by_user = attention_mask.to(torch.bool)[:, None, None, :]
    return by_user if by_position is None else by_position & by_user


def _additive_mask(*sizes: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor | None:
    """The same as numbers that are added to the scores."""
    allowed = _mask(*sizes, **options)
    if allowed is None:
        return None
    return torch.where(allowed, torch.tensor(0.0, dtype=dtype), torch.tensor(torch.finfo(dtype).min, dtype=dtype))


def _tokenizer_inputs(config: PretrainedConfig, folder: Path) -> set[str]:
    """What the model's tokenizer makes: as its own config says, else as its class does."""
    always = {"input_ids", "attention_mask"}
    if config.is_encoder_decoder:
        always.add("decoder_input_ids")
    own = folder / "tokenizer_config.json"
    if own.exists() and own.stat().st_size < MAX_TOKENIZER_CONFIG:
        try:
            names = json.loads(own.read_bytes()).get("model_input_names")
        except (ValueError, AttributeError, RecursionError):
            names = None
        if isinstance(names, list):
            return always | {name for name in names if name in TEXT}
    package = transformers()
    known = package.models.auto.tokenization_auto.TOKENIZER_MAPPING_NAMES.get(config.model_type)
    made = getattr(getattr(package, str(known), None), "model_input_names", ())
    segments = "token_type_ids" in made and getattr(config, "type_vocab_size", 0) > 1
    return always | ({"token_type_ids"} if segments else set())


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)
