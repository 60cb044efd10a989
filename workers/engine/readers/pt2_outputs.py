"""What a program's author calls its outputs: the keys of the dict, or the fields of the class, that it returns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

LONGEST = 100


def output_names(calls: list[dict[str, Any]], count: int) -> tuple[str, ...]:
    """One name for each output in order; `output`, `output_1`, … where the program has none for all of them."""
    numbered = tuple(f"output_{place}" if place else "output" for place in range(count))
    text = next((call["signature"]["out_spec"] for call in calls if call["fqn"] == "" and call.get("signature")), None)
    if not text:
        return numbered
    _, tree = json.loads(text)
    names = tuple(_leaves(tree, ""))
    usable = len(names) == count == len(set(names)) and all(names)
    return names if usable else numbered


def _leaves(tree: dict[str, Any], name: str) -> Iterator[str]:
    kind, children = tree["type"], tree["children_spec"]
    if kind is None:
        yield name[:LONGEST]
        return
    keys = _keys(json.loads(tree["context"] or "null"), len(children))
    for place, child in enumerate(children):
        inner = keys[place] if keys else str(place)
        yield from _leaves(child, f"{name}.{inner}" if name else inner if keys else "")


def _keys(context: Any, count: int) -> list[str]:
    """Those of a dict stand in the context of its spec; of a model's output class, beside the class."""
    parts = (context, *(context if isinstance(context, list) else ()))
    found: list[Any] = next((part for part in parts if _is_keys(part)), [])
    return [str(key) for key in found] if len(found) == count else []


def _is_keys(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and all(isinstance(key, str) and key.isprintable() for key in part)
