"""Errors of YAML and pydantic, in words that need no knowledge of either."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_DIGITS = 18
"""Digits of a number; the longest that is meant has five."""

_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_WORDS_FOR_BOOL = {"true", "false"}


def surprise(text: str, tag: str, number: str) -> str:
    """Say what YAML 1.1 makes of a value that its author cannot have meant; "" if nothing.

    Args:
        text: the value as written.
        tag: what YAML takes it for.
        number: what it comes to, if that is a number.
    """
    kind = tag.rpartition(":")[2]
    match kind:
        case "bool" if text.lower() not in _WORDS_FOR_BOOL:
            return f"YAML reads {text} as a boolean; put the word in quotes if it is meant"
        case "int" if len(text) > MAX_DIGITS:
            return f"a number of {len(text)} digits; nothing here is that large"
        case "int" if not _PLAIN_INT.fullmatch(text):
            return f"YAML reads {text} as the number {number}; write plain digits"
        case "float":
            return f"YAML reads {text} as a float; numbers here are whole"
        case "timestamp" | "binary" | "value" | "merge":
            return f"YAML reads {text} as a {kind}; nothing here is one; put it in quotes"
        case "bool" | "int" | "null" | "str":
            return ""
        case _:
            return f"the tag {tag} is not supported"


def explain(error: Mapping[str, Any]) -> list[str]:
    """Say what pydantic found: one thing, or all that a validator of ours says.

    Args:
        error: one of ``ValidationError.errors()``.
    """
    value, kind = error["input"], error["type"]
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ").split("\n")
    if kind == "too_short" and value:
        return []  # pydantic counts the valid entries; the others are named by themselves
    if value is None and kind in NEEDS_VALUE:
        return [EMPTY_ENTRY if isinstance(error["loc"][-1], int) else EMPTY]
    say = WORDS.get(kind)
    return [say(value, error.get("ctx", {})) if say else str(error["msg"])]


EMPTY = "empty; remove the key, or give it a value"
EMPTY_ENTRY = "empty; remove the entry, or give it a value"

NEEDS_VALUE = {
    "model_type",
    "dict_type",
    "tuple_type",
    "int_type",
    "string_type",
    "bool_type",
    "literal_error",
}

WORDS: dict[str, Callable[[Any, dict[str, Any]], str]] = {
    "missing": lambda _, __: "missing; it is required",
    "extra_forbidden": lambda _, __: "unknown key",
    "model_type": lambda _, __: "must be a mapping of keys",
    "dict_type": lambda _, __: "must be a mapping of keys",
    "tuple_type": lambda value, _: f"must be a list{shown('; write [{}]', value)}",
    "too_short": lambda _, __: "empty; name at least one",
    "too_long": lambda value, context: (
        f"{len(value)} entries: must be at most {context['max_length']}"
    ),
    "int_type": lambda value, _: _not_a_number(value),
    "bool_type": lambda value, _: f"{shown('{!r}: ', value)}must be true or false",
    "string_type": lambda value, _: f"must be text{shown('; put {} in quotes', value)}",
    "string_too_short": lambda _, __: EMPTY,
    "literal_error": lambda value, context: (
        f"{shown('{!r}: ', value)}must be {context['expected']}"
    ),
    "greater_than_equal": lambda value, context: f"{value}: must be at least {context['ge']}",
    "less_than_equal": lambda value, context: f"{value}: must be at most {context['le']}",
}
"""By pydantic's type of error."""


def shown(form: str, value: Any) -> str:
    """Show a value as it stands in the YAML; a mapping or a list is left out."""
    if isinstance(value, bool):
        return form.replace("!r", "").format(str(value).lower())
    return form.format(value) if isinstance(value, str | int) else ""


def _not_a_number(value: Any) -> str:
    if isinstance(value, str) and value.isdecimal():
        return "must be a number; remove the quotes"
    return "must be a whole number"
