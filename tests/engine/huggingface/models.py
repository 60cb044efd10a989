"""Tiny random models of the usual architectures, their folders, and inputs of any batch and length."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from workers.engine.graph import Graph

WORDS = 60
TEXT: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
DISTILBERT: dict[str, Any] = {
    "vocab_size": WORDS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40,
}  # fmt: skip
VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
    "patch_size": 4, "num_labels": 5,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
T5: dict[str, Any] = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}

MODELS: dict[str, Callable[[], Any]] = {
    "bert classifier": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**TEXT, num_labels=3)
    ),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**TEXT)),
    "bert for masked words": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**TEXT)),
    "distilbert": lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**DISTILBERT)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**TEXT)),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=2)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "t5 encoder": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
}


def make(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return target


def inputs(graph: Graph, batch: int, length: int) -> dict[str, Tensor]:
    """Random ones; the mask leaves out the end of every example but the first."""
    made: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(batch)
    for spec in graph.inputs:
        if spec.name == "pixel_values":
            made[spec.name] = torch.randn(batch, *spec.shape[1:], generator=generator)
        elif spec.name == "input_ids":
            made[spec.name] = torch.randint(3, WORDS, (batch, length), generator=generator)
        elif spec.name == "attention_mask":
            ends = length - torch.arange(batch).clamp(max=length - 1)
            made[spec.name] = (torch.arange(length) < ends[:, None]).long()
        else:
            made[spec.name] = torch.randint(0, 2, (batch, length), generator=generator)
    return made


def answers(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: value for name, value in model(**given).items() if isinstance(value, Tensor)}
