"""What pydantic finds wrong, in the words of those who write JSON: it speaks of tuples and instances of classes."""

from collections.abc import Sequence

from pydantic_core import ErrorDetails


def told_once(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are called too short because one of their items, which is named as well, was not counted."""
    places = [detail["loc"] for detail in errors]
    return [
        detail
        for detail in errors
        if detail["type"] != "too_short"
        or not any(place[: len(detail["loc"])] == detail["loc"] and place != detail["loc"] for place in places)
    ]


def plain(detail: ErrorDetails) -> str:
    """What is wrong with one value."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "tuple_type" | "list_type":
            return 'this is a list: ["…"]'
        case "dict_type" | "model_type" | "model_attributes_type":
            return 'this is an object: {"…": …}'
        case "too_short":
            return f"this needs at least {context['min_length']} of them"
        case "too_long":
            return f"at most {context['max_length']} of them, and these are {context['actual_length']}"
        case "value_error":
            return str(context["error"])
    message = detail["msg"]
    return message[0].lower() + message[1:]
