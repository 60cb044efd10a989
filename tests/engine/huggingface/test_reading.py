"""Hugging Face folders, read, and compared with transformers' own answers at other batches and lengths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tests.engine.huggingface.models import MODELS, answers, inputs, make, saved, zipped
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers import read_model
from workers.engine.readers.huggingface import read_huggingface
from workers.engine.weights import held_tensors
from workers.engine.writers.onnx import write_onnx


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    model = make(name)
    graph = read_huggingface(saved(model, tmp_path))
    session = onnxruntime.InferenceSession(write_onnx(graph), providers=["CPUExecutionProvider"])
    for batch, length in ((1, 5), (4, 9)):
        given = inputs(graph, batch, length)
        wanted = answers(model, given)
        with torch.no_grad():
            found = graph(*given.values())
        run = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        for spec, own, stored in zip(graph.outputs, found, run, strict=True):
            torch.testing.assert_close(own, wanted[spec.name], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(stored, own.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_keeps_its_name(name: str, tmp_path: Path) -> None:
    graph = read_huggingface(saved(make(name), tmp_path))
    assert graph.origin is not None
    assert graph.origin.lost == ()
    held = {graph.origin.tied.get(key, key) for key in held_tensors(graph)}
    assert set(graph.origin.names) - set(graph.origin.unused) <= held
    assert set(graph.origin.names) - held == set(graph.origin.unused)


def test_inputs_and_outputs_have_transformers_names_and_open_dimensions(tmp_path: Path) -> None:
    graph = read_huggingface(saved(make("bert"), tmp_path))
    assert {spec.name: spec.shape for spec in graph.inputs} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), ("batch", "length")
    )
    assert {spec.name: spec.shape for spec in graph.outputs} == {
        "last_hidden_state": ("batch", "length", 32),
        "pooler_output": ("batch", 32),
    }


def test_conv1d_of_gpt2_is_a_layer_over_the_last_dimension(tmp_path: Path) -> None:
    graph = read_huggingface(saved(make("gpt2"), tmp_path))
    layers = {layer.name: layer.module for layer in graph.layers()}
    assert layers["transformer.h.0.attn.c_attn"].weight.shape == (96, 32)
    assert type(layers["transformer.h.0.attn.c_attn"]).__name__ == "Projection"
    assert layers["lm_head"].weight is layers["transformer.wte"].weight


def test_a_zip_of_the_folder_is_read_and_so_are_shards(tmp_path: Path) -> None:
    folder = saved(make("distilbert"), tmp_path / "model", max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    format_, graph = read_model(zipped(folder, tmp_path / "model.zip"))
    assert format_ == "huggingface"
    assert graph.outputs[0].name == "last_hidden_state"


def test_pickled_weights_are_loaded_as_tensors_only(tmp_path: Path) -> None:
    model = make("distilbert")
    folder = saved(model, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert read_huggingface(folder).outputs[0].name == "last_hidden_state"
    torch.save(model, folder / "pytorch_model.bin")
    with pytest.raises(InvalidModelError, match="transformers cannot load the weights"):
        read_huggingface(folder)


def test_half_precision_is_read_as_float32_and_remembered(tmp_path: Path) -> None:
    graph = read_huggingface(saved(make("distilbert").bfloat16(), tmp_path))
    assert {spec.dtype for spec in graph.outputs} == {"float32"}
    assert graph.origin is not None
    assert graph.origin.dtype is torch.bfloat16


def test_code_in_the_folder_never_runs(tmp_path: Path) -> None:
    folder = saved(make("distilbert"), tmp_path)
    ran = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"open({str(ran)!r}, 'w')\n")
    change_config(folder, auto_map={"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"})
    graph = read_huggingface(folder)
    assert not ran.exists()
    assert any("auto_map" in note for note in graph.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "unheard of"}, r"not in transformers"),
        ({"model_type": 3}, r"not in transformers"),
        ({"architectures": ["GPT2Model"]}, r"is not a distilbert"),
        ({"architectures": ["os.system"]}, r"is not a distilbert"),
        ({"architectures": ["PreTrainedModel"]}, r"is not a distilbert"),
        ({"architectures": None}, r"must name one class"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"another tool has quantized"),
        ({"dim": 64}, r"of another shape: .*\(60, 32\) for \(60, 64\)"),
        ({"n_layers": 3}, r"missing: transformer\.layer\.2"),
        ({"n_heads": 5}, r"is none of a DistilBertModel"),
        ({"vocab_size": 10**10}, r"describes a model of"),
        ({"dim": "wide"}, r"does not take config\.json|is none of"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_words(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = saved(make("distilbert"), tmp_path)
    change_config(folder, **changes)
    with pytest.raises((InvalidModelError, UnsupportedModelError), match=words):
        read_huggingface(folder)


def test_a_folder_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    folder = saved(make("distilbert"), tmp_path, max_shard_size="10KB")
    next(iter(folder.glob("model-00002*"))).unlink()
    with pytest.raises(InvalidModelError, match=r"lacks files that model\.safetensors\.index\.json names"):
        read_huggingface(folder)
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    with pytest.raises(InvalidModelError, match=r"no model\.safetensors"):
        read_huggingface(folder)


def test_a_missing_pooler_is_left_out(tmp_path: Path) -> None:
    folder = saved(make("bert for masked words").bert, tmp_path)
    change_config(folder, architectures=["BertModel"])
    graph = read_huggingface(folder)
    assert [spec.name for spec in graph.outputs] == ["last_hidden_state"]
    assert any("pooler" in note for note in graph.notes)
