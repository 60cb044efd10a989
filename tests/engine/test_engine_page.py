"""What docs/engine.md shows of the code stands there, word for word."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "engine.md").read_text()
EXCERPTS = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("file", "excerpt"), EXCERPTS)
def test_the_excerpt_is_the_code(file: str, excerpt: str) -> None:
    assert excerpt in (ROOT / file).read_text()


def test_every_example_is_an_excerpt() -> None:
    assert len(EXCERPTS) == PAGE.count("```python") > 5


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:[a-z_]+/)*[a-z_0-9]+\.py)`", PAGE))))
def test_the_file_is_there(name: str) -> None:
    assert any((ROOT / folder / name).is_file() for folder in ("", "workers/engine", "workers/engine/readers"))
