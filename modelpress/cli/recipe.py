"""A recipe as people type it: short, as JSON, or as a file with the JSON.

    magnitude_pruning:sparsity=0.7,distillation:epochs=2:temperature=3,static_quantization

Steps are separated by commas, options by colons. A value is JSON where it is JSON, else a word.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from modelpress.complaints import plain, told_once
from modelpress.steps import AnyStep, IllegalOrderError, check_order

RECIPE: TypeAdapter[list[AnyStep]] = TypeAdapter(list[AnyStep])


class RecipeError(ValueError):
    """A recipe that cannot be meant; the message says which step and what is wrong with it."""


def read_recipe(text: str) -> list[AnyStep]:
    """Raises RecipeError."""
    steps = _json(text) if text.lstrip().startswith(("[", "{")) else _file_or_short(text)
    try:
        recipe = RECIPE.validate_python(steps)
        check_order(recipe)
    except ValidationError as error:
        raise RecipeError("\n".join(_sentences(error))) from None
    except IllegalOrderError as error:
        raise RecipeError(str(error)) from None
    if not recipe:
        raise RecipeError("the recipe is empty")
    return recipe


def _file_or_short(text: str) -> Any:
    if text.endswith(".json"):
        try:
            return _json(Path(text).read_text("utf-8"))
        except OSError as error:
            raise RecipeError(f"the recipe cannot be read: {error}") from None
    return [_short_step(part) for part in _split(text, ",") if part.strip()]


def _json(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"the recipe is no JSON: {error}") from None
    if isinstance(value, dict) and "recipe" in value:
        value = value["recipe"]
    return [value] if isinstance(value, dict) else value


def _short_step(text: str) -> dict[str, Any]:
    name, *options = (part.strip() for part in _split(text, ":"))
    step: dict[str, Any] = {"step": name}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise RecipeError(f"{name}: {option!r} is no option; write {option}=VALUE")
        step[key.strip()] = _value(value.strip())
    return step


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _split(text: str, separator: str) -> list[str]:
    """At separators that stand outside of brackets, braces and quotes, so that a value may be JSON with them."""
    parts, depth, quoted, start = [], 0, False, 0
    for at, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "[{":
            depth += 1
        elif not quoted and character in "]}":
            depth -= 1
        elif character == separator and depth == 0 and not quoted:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _sentences(error: ValidationError) -> Iterator[str]:
    for detail in told_once(error.errors()):
        # the location is the step's number, its name, then the option
        _, *where = map(str, detail["loc"])
        step, option = where[0] if where else "", where[-1] if where else ""
        match detail["type"]:
            case "union_tag_invalid":
                context = detail["ctx"]
                known = context["expected_tags"].replace("'", "")
                yield f"there is no step {context['tag']!r}; there are: {known}"
            case "union_tag_not_found":
                yield 'a step names itself: {"step": "…"}'
            case "model_attributes_type" | "dict_type" if not where:
                yield 'a step is an object: {"step": "…"}'
            case "extra_forbidden":
                yield f"{step}: there is no option {option!r}; `modelpress steps {step}` lists them"
            case _:
                yield f"{', '.join(where) or 'recipe'}: {plain(detail)}"
