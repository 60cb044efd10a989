"""Which numbers of a Hugging Face config make a model whose weights have the wanted shapes, if any do.

What a number of the config does is found by trying: the model is built with another one, on no memory, and the
dimensions that change are those that it sets. So no architecture needs a table of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from workers.engine.readers.huggingface import config_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shapes = dict[str, tuple[int, ...]]

NUMBERS = (
    "num_key_value_heads", "num_attention_heads", "n_head", "n_heads", "num_heads", "intermediate_size",
    "n_inner", "d_ff", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "mlp_dim", "hidden_size",
    "n_embd", "d_model", "dim", "vocab_size", "num_channels",
)  # fmt: skip
"""The width of a head is none of them: it never changes, and the number of heads explains the same dimensions."""
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")


def shapes_of(cls: type[PreTrainedModel], values: Mapping[str, Any]) -> Shapes | None:
    """Of all weights but tied ones, by name; None where transformers does not build such a model."""
    try:
        with torch.device("meta"):
            model = cls(config_of(dict(values)))
    except Exception:  # noqa: BLE001  # sizes that do not go together: every class says so in its own way
        return None
    tied = set(model.all_tied_weights_keys)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def describe(cls: type[PreTrainedModel], values: Mapping[str, Any], wanted: Shapes) -> dict[str, Any] | None:
    """Numbers that make the wanted shapes together; None where none do. `values`: the config now."""
    spelled = _spelled_out(values)
    values = {**values, **spelled}
    now = shapes_of(cls, values)
    if now is None or now.keys() != wanted.keys():
        return None
    found = {name: number for name, number in _numbers(values).items() if name in NUMBERS}
    changes = {}
    for name, number in found.items():
        new = _solved(cls, values, name, number, now, wanted)
        if new is not None and new != number:
            changes[name] = new
    given = {name: number for name, number in values.items() if name not in spelled}
    for more in (changes, {**spelled, **changes}):
        if shapes_of(cls, {**given, **more}) == wanted:
            return more
    return None


def _numbers(values: Mapping[str, Any]) -> dict[str, int]:
    """The config's own numbers, and those that transformers fills in."""
    config = config_of(dict(values)).to_dict()
    return {name: number for name, number in config.items() if type(number) is int and number > 0}


def _spelled_out(values: Mapping[str, Any]) -> dict[str, int]:
    """Numbers that follow from others where they are left out."""
    numbers = _numbers(values)
    width = next((numbers[name] for name in WIDTHS if name in numbers), None)
    heads = next((numbers[name] for name in HEADS if name in numbers), None)
    spelled = {}
    if width and heads and "head_dim" not in numbers and width % heads == 0:
        spelled["head_dim"] = width // heads
    if width and "n_inner" in config_of(dict(values)).to_dict() and "n_inner" not in numbers:
        spelled["n_inner"] = 4 * width
    return spelled


def _solved(
    cls: type[PreTrainedModel], values: Mapping[str, Any], name: str, number: int, now: Shapes, wanted: Shapes
) -> int | None:
    """The value of one number that all dimensions that it sets agree upon."""
    for step in (1, number):
        probe = shapes_of(cls, {**values, name: number + step})
        if probe is None or probe.keys() != now.keys():
            continue
        answers = {
            number + Fraction(wanted[weight][axis] - size) * step / (moved - size)
            for weight, shape in now.items()
            for axis, (size, moved) in enumerate(zip(shape, probe[weight], strict=True))
            if moved != size
        }
        if len(answers) == 1:
            (answer,) = answers
            return int(answer) if answer.denominator == 1 and answer > 0 else None
        return None
    return None
