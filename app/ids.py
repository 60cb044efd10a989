"""Ids as users see them: a prefix that says what it is, and the 32 hex digits of a uuid7."""

from uuid import UUID

MODEL, DATASET, JOB, COMPARISON, KEY = "mdl", "dst", "job", "cmp", "key"


def show(prefix: str, value: UUID) -> str:
    return f"{prefix}_{value.hex}"


def parse(prefix: str, text: str) -> UUID:
    """Raises ValueError where the text is not an id of that kind."""
    head, _, tail = text.partition("_")
    if head != prefix or len(tail) != 32:
        raise ValueError(f"not an id of the form {prefix}_…: {text!r}")
    return UUID(hex=tail)
