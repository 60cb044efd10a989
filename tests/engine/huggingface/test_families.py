"""Architectures with something of their own: shared layers, windows, other positions, decoders, sound."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.engine.huggingface.models import TEXT, VIT, answers, saved
from workers.engine.graph import Graph
from workers.engine.readers.huggingface import read_huggingface

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]

GROUPED = {**TEXT, "num_key_value_heads": 2}

FAMILIES: dict[str, Callable[[], Any]] = {
    "layers that are one": lambda: transformers.AlbertForSequenceClassification(
        transformers.AlbertConfig(**TEXT, embedding_size=16)
    ),
    "positions apart from content": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**TEXT)),
    "a sliding window": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**GROUPED, sliding_window=4)
    ),
    "windows and capped scores": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=4)
    ),
    "normalized heads": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, head_dim=8)),
    "slopes for positions": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=60)
    ),
    "an encoder and a decoder": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=60, max_position_embeddings=40,
        )
    ),
    "sound": lambda: transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4, num_feat_extract_layers=2,
        )
    ),
    "shifted windows": lambda: transformers.SwinForImageClassification(
        transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
        )
    ),
    "convolutions": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    ),
    "a distilled image transformer": lambda: transformers.DeiTForImageClassification(transformers.DeiTConfig(**VIT)),
}  # fmt: skip


def given(graph: Graph, batch: int, length: int) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for spec in graph.inputs:
        sizes = [size if isinstance(size, int) else length for size in spec.shape[1:]]
        if spec.name.endswith("input_ids"):
            made[spec.name] = torch.randint(3, 60, (batch, *sizes))
        elif spec.dtype == "int64":
            made[spec.name] = torch.full((batch, *sizes), int(spec.name.endswith("mask")))
        else:
            made[spec.name] = torch.randn(batch, *(sizes if len(sizes) > 1 else [300 * length]))
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    graph = read_huggingface(saved(model, tmp_path))
    assert graph.inputs[0].shape[0] == "batch"
    for batch, length in ((1, 9), (3, 13)):
        inputs = given(graph, batch, length)
        wanted = answers(model, inputs)
        with torch.no_grad():
            for spec, own in zip(graph.outputs, graph(*inputs.values()), strict=True):
                torch.testing.assert_close(own, wanted[spec.name], rtol=1e-4, atol=1e-5)
