"""Writes docs/steps.md and docs/settings.md from the code: `make docs`. A test holds them to it."""

from inspect import cleandoc
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.settings import Settings
from modelpress.steps import STEPS, Data, Step, allowed_before

HERE = Path(__file__).parent

STEPS_HEAD = """# Steps

The catalogue, as `GET /v1/steps` and `modelpress steps` have it. A recipe is a list of these, in the order in which
they are done. Every later step keeps what an earlier one has made: masks stay masks, grids stay grids, also through
training.

Data: `none` needs nothing; `calibrate` some hundreds of inputs; `unlabelled` training inputs, whose labels are not
looked at; `train` training inputs with labels. `calibrate` falls back to `train`. More data than needed does better.

`layers` takes names or patterns of layers, as a shell has them: `{"include": ["layer1.*"], "exclude": ["*.fc"]}`; what
is excluded is left alone even where it is included. The names are those in the report's `layers`.
"""

SETTINGS_HEAD = """# Settings

Read from the environment by every process. `modelpress up` needs none of them: it makes a PostgreSQL, a Redis and a
secret of its own for those that are not set, and keeps them below `MODELPRESS_HOME`.

| name | default | what it is |
|---|---|---|
"""

EXPLAINED = {
    "DATABASE_URL": "PostgreSQL: `postgresql://user:password@host/database`",
    "REDIS_URL": "Redis or Valkey, with `maxmemory-policy noeviction`: `redis://host:6379/0`",
    "MODELPRESS_MAX_UPLOAD_BYTES": "a larger file is refused",
    "MODELPRESS_HEARTBEAT_SECONDS": "a worker renews its lease this often",
}
"""For settings whose names say enough in the code, but not here."""


def steps_page() -> str:
    return "\n".join([STEPS_HEAD, *map(step_section, STEPS.values())])


def step_section(step: type[Step]) -> str:
    after = ", ".join(f"`{name}`" for name in allowed_before(step)) or "nothing"
    rows = [
        f"| `{name}` | {values(field)} | {default(field)} | {field.description or ''} |"
        for name, field in step.model_fields.items()
        if name != "step"
    ]
    made_up = ", made up where none is sent" if step.synthetic and step.needs is not Data.NONE else ""
    return f"""## {step.model_fields["step"].default}

{" ".join(cleandoc(step.__doc__ or "").split())}

Needs data: `{step.needs.value}`{made_up}. Fixes {step.stage.fixes}. May come after: {after}. {step.paper}

| option | values | default | what it is |
|---|---|---|---|
{chr(10).join(rows)}
"""


def values(field: FieldInfo) -> str:
    limits = " ".join(
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if hasattr(rule, name)
    )
    return f"{kind(field.annotation)} {limits}".strip()


def kind(annotation: Any) -> str:
    given = get_args(annotation)
    if not given:
        return {"LayerSelection": "`{include, exclude}`", "NoneType": "null"}.get(
            annotation.__name__, annotation.__name__
        )
    if get_origin(annotation) in (UnionType, Union):
        return " or ".join(map(kind, given))
    if get_origin(annotation) is Annotated:
        return values(FieldInfo.from_annotation(annotation))
    if get_origin(annotation) is dict:
        key, value = map(kind, given)
        return f"`{{{key}: {value}}}`"
    if get_origin(annotation) is tuple:
        return f"list of {kind(given[0])}"
    return ", ".join(f"`{value}`" for value in given)


def default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    return "all layers" if hasattr(value, "selects") else "" if value is None else f"`{value}`"


def settings_page() -> str:
    return SETTINGS_HEAD + "".join(f"| `{name}` | {text} | {what} |\n" for name, text, what in settings())


def settings() -> list[tuple[str, str, str]]:
    found = []
    for field_name, field in Settings.model_fields.items():
        name = str(field.validation_alias or f"MODELPRESS_{field_name.upper()}")
        text = "`~/.modelpress`" if field_name == "home" else default(field)
        found.append((name, text, field.description or EXPLAINED[name]))
    return found


if __name__ == "__main__":
    (HERE / "steps.md").write_text(steps_page())
    (HERE / "settings.md").write_text(settings_page())
