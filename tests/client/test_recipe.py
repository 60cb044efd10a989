"""Recipes as people type them."""

import re
from pathlib import Path

import pytest

from modelpress.cli.recipe import RecipeError, read_recipe
from modelpress.steps import Distillation, HalfPrecision, LayerSelection, MagnitudePruning, StaticQuantization


def test_the_short_form() -> None:
    assert read_recipe("magnitude_pruning:sparsity=0.7,distillation:epochs=2:features=true,static_quantization") == [
        MagnitudePruning(sparsity=0.7),
        Distillation(epochs=2, features=True),
        StaticQuantization(),
    ]


def test_a_value_may_be_a_word_or_json() -> None:
    layers = '{"include": ["block1.*", "block2.*"], "exclude": ["*.norm1"]}'
    assert read_recipe(f"half_precision:dtype=bfloat16:layers={layers}") == [
        HalfPrecision(dtype="bfloat16", layers=LayerSelection(include=("block1.*", "block2.*"), exclude=("*.norm1",)))
    ]


@pytest.mark.parametrize(
    "text",
    [
        '[{"step": "half_precision"}]',
        '{"step": "half_precision"}',
        '{"recipe": [{"step": "half_precision"}], "seed": 3}',
        " half_precision , ",
    ],
)
def test_other_forms(text: str) -> None:
    assert read_recipe(text) == [HalfPrecision()]


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('[{"step": "half_precision"}]')
    assert read_recipe(str(path)) == [HalfPrecision()]


def test_a_list_is_not_called_too_short_for_a_wrong_item() -> None:
    with pytest.raises(RecipeError) as raised:
        read_recipe('channel_pruning:kinds=["filters"]')
    assert str(raised.value).startswith("channel_pruning, kinds, 0: input should be 'channels'")
    assert "at least" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the recipe is empty"),
        ("[]", "the recipe is empty"),
        ("shrink", "there is no step 'shrink'; there are: channel_pruning"),
        ("half_precision:dtype", "write dtype=VALUE"),
        ("half_precision:bits=8", "half_precision: there is no option 'bits'"),
        ("magnitude_pruning:sparsity=2", "magnitude_pruning, sparsity: input should be less than 1"),
        ("channel_pruning:kinds=heads", 'channel_pruning, kinds: this is a list: ["…"]'),
        ("channel_pruning:kinds=[]", "channel_pruning, kinds: this needs at least 1 of them"),
        ("channel_pruning:layers=conv1", "channel_pruning, layers: this is an object"),
        ("channel_pruning:layer_ratios=0.5", "channel_pruning, layer_ratios: this is an object"),
        ("channel_pruning:ratio=0.5:macs_left=0.5", "channel_pruning: ratio, macs_left and parameters_left are three"),
        ("static_quantization,magnitude_pruning", "magnitude_pruning cannot come after static_quantization"),
        ("[{", "the recipe is no JSON"),
        ('[{"sparsity": 1}]', "a step names itself"),
        ("nowhere/recipe.json", "the recipe cannot be read"),
        ("3", "there is no step '3'"),
        ("[3]", "a step is an object"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        read_recipe(text)
