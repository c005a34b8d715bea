"""What is wrong with a document, and where, in words that need neither YAML nor pydantic."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str | int, ...]
"""Keys and positions from the top of a document."""

Place = tuple[int, int]
"""Line and column, counted from 1."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    ``source``: the file's path, or the node on which overrides contradict each other. ``line``,
    ``column``: counted from 1, where the value, or for an unknown key the key, begins; 0 if it has
    no one place, or the file could not be read. ``path``: keys from the top, joined with dots.
    """

    source: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f":{self.line}:{self.column}" if self.line else ""
        where = f"{self.source}{place}: "
        return f"{where}{self.path}: {self.message}" if self.path else where + self.message


class DocumentError(Exception):
    """The document is invalid; a person must edit it. Carries every problem, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(
            sorted(set(problems), key=lambda p: (p.source, p.line, p.column, p.path, p.message))
        )
        super().__init__("\n".join(map(str, self.problems)))


class UncheckedError(DocumentError):
    """Whether the document is valid is unknown: what checks it has not answered. Ask again."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where each part of a document stands in its file, as line and column.

    ``spoilt``: what YAML reads as something else, and is a problem already.
    """

    source: str
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    spoilt: set[Path] = field(default_factory=set)

    def __contains__(self, path: object) -> bool:
        return path in self.values

    def is_spoilt(self, path: Path) -> bool:
        """Whether it is part of what is a problem already."""
        return any(path[:length] in self.spoilt for length in range(len(path) + 1))

    def problem(self, path: Path, message: str, *, of_key: bool = False) -> Problem:
        """Place what is wrong with a value, or with its key; what is missing, at what lacks it."""
        place = self.keys.get(path) if of_key else None
        for length in range(len(path), -1, -1):
            place = place or self.values.get(path[:length])
        return Problem(self.source, *(place or (1, 1)), print_path(path), message)


def print_path(path: Path) -> str:
    """Write a path; what is no key of ours, as m5.large, stands in brackets."""
    text = ""
    for part in path:
        word = str(part) if str(part).isprintable() else ascii(part)
        bracketed = isinstance(part, int) or "." in word
        text += f"[{word}]" if bracketed else f".{word}" if text else word
    return text


MAX_DIGITS = 18
"""Digits of a number; the longest that is meant has five."""

_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_WORDS_FOR_BOOL = {"true", "false"}


def surprise(text: str, tag: str, number: str) -> str:
    """Say what YAML 1.1 makes of a value that its author cannot have meant; "" if nothing.

    ``number``: what the text comes to, if that is a number.
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

    ``error``: one of ``ValidationError.errors()``.
    """
    value, kind = error["input"], error["type"]
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ").split("\n")
    if kind == "too_short" and value:
        return []  # pydantic counts the valid entries; the others are named by themselves
    branch = str(error["loc"][-1]) if error["loc"] else ""
    if branch.startswith("literal[") or branch.endswith("-int"):
        # Of a number or a word pydantic says twice what is wrong: the one that is meant remains.
        is_word = isinstance(value, str)
        if is_word != branch.startswith("literal["):
            return []
        if is_word:
            return [f"{value!r}: must be a whole number or {error['ctx']['expected']}"]
    if value is None and kind in NEEDS_VALUE:
        return [EMPTY_ENTRY if isinstance(error["loc"][-1], int) else EMPTY]
    say = WORDS.get(kind)
    return [say(value, error.get("ctx", {})) if say else str(error["msg"])]


EMPTY = "empty; remove the key, or give it a value"
EMPTY_ENTRY = "empty; remove the entry, or give it a value"

NEEDS_VALUE = {
    *("model_type", "dict_type", "tuple_type", "int_type", "string_type", "bool_type"),
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
