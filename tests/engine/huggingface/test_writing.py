"""Hugging Face folders, written again after nothing, or after layers became smaller."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from modelpress.huggingface import load
from tests.engine.huggingface.models import MODELS, WORDS, answers, inputs, make, saved
from workers.engine.constraints import constrain
from workers.engine.errors import UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.half import Half
from workers.engine.readers import read_model
from workers.engine.readers.archive_folder import unpack
from workers.engine.readers.huggingface import read_huggingface
from workers.engine.structure.blocks import drop, find_blocks
from workers.engine.structure.groups import Group, find_groups, remove_units
from workers.engine.writers import write_model


def written(graph: Graph, folder: Path) -> Path:
    """The folder that is in the zip."""
    target = folder / "result.zip"
    write_model(graph, "safetensors", target)
    return unpack(target)


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def pruned(graph: Graph, keep: Callable[[Group, int], Tensor | None]) -> Graph:
    """`keep` says for a group and its place which units stay; None where all do."""
    free = [group for group in find_groups(graph) if group.frozen is None]
    chosen = {group.name: kept for place, group in enumerate(free) if (kept := keep(group, place)) is not None}
    assert chosen
    remove_units(graph, chosen)
    return graph


def every_second(group: Group, _: int) -> Tensor:
    return torch.arange(group.units) % 2 == 0


def widths(group: Group, _: int) -> Tensor | None:
    return every_second(group, 0) if group.units == 48 else None


def first_layer_only(group: Group, place: int) -> Tensor | None:
    return every_second(group, place) if ".0." in group.name else None


def assert_same(graph: Graph, model: Any) -> None:
    for batch, length in ((2, 6), (1, 8)):
        given = inputs(graph, batch, length)
        found = answers(model, given)
        with torch.no_grad():
            wanted = graph(*given.values())
        for spec, value in zip(graph.outputs, wanted, strict=True):
            torch.testing.assert_close(found[spec.name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_an_unchanged_model_keeps_names_values_config_and_small_files(name: str, tmp_path: Path) -> None:
    folder = saved(make(name), tmp_path / "model")
    (folder / "vocab.txt").write_text("[PAD]\n")
    again = written(read_huggingface(folder), tmp_path)
    before, after = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert config_of(again) == config_of(folder)
    assert (again / "vocab.txt").read_text() == "[PAD]\n"


def test_the_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    graph = read_huggingface(saved(make("gpt2"), tmp_path / "model"))
    for name in ("one", "two"):
        write_model(graph, "safetensors", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}),
        ("vit", {"num_attention_heads": 2, "head_dim": 8, "intermediate_size": 24}),
        ("t5 encoder", {"num_heads": 2, "d_ff": 24}),
    ],
)
def test_a_config_that_can_say_it_says_what_became_smaller(name: str, changes: dict[str, int], tmp_path: Path) -> None:
    graph = pruned(read_huggingface(saved(make(name), tmp_path / "model")), every_second)
    folder = written(graph, tmp_path)
    config = config_of(folder)
    assert changes.items() <= config.items()
    assert "modelpress" not in config
    assert_same(graph, getattr(transformers, config["architectures"][0]).from_pretrained(folder))
    assert_same(graph, load(folder))


@pytest.mark.parametrize("name", ["bert classifier", "roberta", "distilbert"])
def test_narrower_feed_forward_layers_load_with_plain_from_pretrained(name: str, tmp_path: Path) -> None:
    graph = pruned(read_huggingface(saved(make(name), tmp_path / "model")), widths)
    folder = written(graph, tmp_path)
    config = config_of(folder)
    assert config["hidden_dim" if name == "distilbert" else "intermediate_size"] == 24
    assert_same(graph, getattr(transformers, config["architectures"][0]).from_pretrained(folder))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "t5 encoder"])
def test_layers_of_different_sizes_load_with_our_own_loader(name: str, tmp_path: Path) -> None:
    graph = pruned(read_huggingface(saved(make(name), tmp_path / "model")), first_layer_only)
    folder = written(graph, tmp_path)
    assert config_of(folder)["modelpress"]["sizes"]
    assert_same(graph, load(folder))
    assert_same(graph, load(folder).train(mode=False))
    format_, again = read_model(tmp_path / "result.zip")
    assert format_ == "huggingface"
    assert_same(again, load(folder))


@pytest.mark.parametrize(
    ("name", "count"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("vit", "num_hidden_layers")]
)
def test_whole_blocks_that_are_gone_are_fewer_layers(name: str, count: str, tmp_path: Path) -> None:
    graph = read_huggingface(saved(make(name), tmp_path / "model"))
    for _ in range(2):  # attention, then the feed-forward part of the first layer
        drop(graph, next(block for block in find_blocks(graph) if ".0." in f"{block.name}."))
    folder = written(graph, tmp_path)
    config = config_of(folder)
    assert config[count] == 1
    assert "modelpress" not in config
    assert_same(graph, getattr(transformers, config["architectures"][0]).from_pretrained(folder))


def test_a_feed_forward_part_that_is_gone_leaves_the_layer(tmp_path: Path) -> None:
    graph = read_huggingface(saved(make("llama"), tmp_path / "model"))
    drop(graph, next(block for block in find_blocks(graph) if "mlp" in block.name))
    folder = written(graph, tmp_path)
    assert config_of(folder)["modelpress"]["removed"]
    assert_same(graph, load(folder))
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):  # it would make up the part that is gone
        transformers.LlamaForCausalLM.from_pretrained(folder)


def test_weights_keep_the_16_bits_that_they_came_in(tmp_path: Path) -> None:
    folder = saved(make("distilbert").half(), tmp_path / "model")
    again = load_file(written(read_huggingface(folder), tmp_path) / "model.safetensors")
    before = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[key], again[key]) and again[key].dtype is torch.float16 for key in before)


def test_half_precision_is_stored_in_16_bits(tmp_path: Path) -> None:
    graph = read_huggingface(saved(make("distilbert"), tmp_path / "model"))
    layer = next(layer for layer in graph.layers() if layer.name.endswith("lin1"))
    constrain(layer.module, "weight", Half(torch.float16))
    stored = load_file(written(graph, tmp_path) / "model.safetensors")
    assert stored[f"{layer.name}.weight"].dtype is torch.float16
    assert stored[f"{layer.name}.bias"].dtype is torch.float32


def test_what_has_no_place_in_the_class_is_refused(tmp_path: Path) -> None:
    graph = read_huggingface(saved(make("distilbert"), tmp_path / "model"))
    next(graph.layers()).node.meta["names"] = {"weight": "embeddings.word_embeddings.left.weight"}
    with pytest.raises(UnsupportedModelError, match=r"no place for: .*left\.weight; take the result as onnx"):
        write_model(graph, "safetensors", tmp_path / "result")


def test_sizes_that_the_class_computes_with_are_refused(tmp_path: Path) -> None:
    """BLOOM takes the number of heads from the width, which stays."""
    torch.manual_seed(0)
    model = transformers.BloomModel(transformers.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=1, n_head=4))
    graph = pruned(read_huggingface(saved(model.eval(), tmp_path / "model")), every_second)
    with pytest.raises(UnsupportedModelError, match=r"no BloomModel of which such parts are gone.*as onnx or pt2"):
        write_model(graph, "safetensors", tmp_path / "result")


def test_quantized_activations_are_refused(tmp_path: Path) -> None:
    graph = read_huggingface(saved(make("distilbert"), tmp_path / "model"))
    graph.module.add_module("fake", FakeQuantize(0.1, 0))
    with pytest.raises(UnsupportedModelError, match="activations are quantized too: take it as onnx"):
        write_model(graph, "safetensors", tmp_path / "result")
