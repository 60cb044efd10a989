"""Real English sentences that are on every developer's machine: from the docstrings of Python and of its packages."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SENTENCE = re.compile(r"(?:^|(?<=[.!?] ))[A-Z][A-Za-z0-9 ,;'\"()-]{30,220}[.!?](?= |$)")
PLAIN = 0.85
"""The share of plain words from which on text is a sentence rather than code."""
PACKAGES = ("numpy", "sympy", "networkx", "sqlalchemy", "transformers", "celery", "rich", "pip", "huggingface_hub")


def sentences(most: int, seed: int = 0) -> list[str]:
    """Different ones, in a random order: of the standard library and of the packages above that are installed."""
    library, packages = Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_paths()["purelib"])
    files = [file for file in sorted(library.rglob("*.py")) if "site-packages" not in file.parts]
    for package in PACKAGES:
        files += sorted((packages / package).rglob("*.py"))
    order = random.Random(seed)
    order.shuffle(files)
    found: dict[str, None] = {}
    for file in files:
        found.update(dict.fromkeys(_of(file)))
        if len(found) >= most:
            break
    every = list(found)
    order.shuffle(every)
    return every[:most]


def _of(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (SyntaxError, ValueError):  # tests of parsers hold what is none
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
            for sentence in SENTENCE.findall(" ".join(paragraph.split())):
                words = sentence.split()
                plain = sum(word.strip(",.;()").isalpha() for word in words)
                if 6 <= len(words) <= 40 and plain >= PLAIN * len(words):
                    yield sentence
