"""The text of a document, each line with where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from reconciler.importing.translate import Line, Note

MAX_COMMENT = 400
"""Characters of one comment."""


def write(lines: Iterable[Line], notes: Sequence[Note]) -> Iterator[str]:
    """Yield the document's text, each line with where it came from."""
    sections: dict[str, list[Line]] = {}
    for line in lines:
        sections.setdefault(line.path.split(".")[0], []).append(line)
    for section in sections.values():
        yield from _section(section)
    if notes:
        yield ""
        yield "# Not translated, or different:"
        yield from (f"# - {_one_line(note.text)}" for note in notes)


def _section(lines: Iterable[Line]) -> Iterator[str]:
    """Yield what is below one key of the document; the keys above are written once."""
    above: list[str] = []
    for line in lines:
        *parents, key = line.path.split(".")
        for depth, parent in enumerate(parents):
            if above[depth : depth + 1] != [parent]:
                yield f"{'  ' * depth}{parent}:"
        above = parents
        indent = "  " * len(parents)
        comment = f"  # {_one_line(line.source)}" if line.source else ""
        if isinstance(line.value, list) and isinstance(line.value[0], dict):
            yield f"{indent}{key}:{comment}"
            yield from (f"{indent}  - {_flow(item)}" for item in line.value)
        else:
            yield f"{indent}{key}: {_flow(line.value)}{comment}"


def _one_line(text: str) -> str:
    """Return a comment's text: a value in it may have line breaks, or be of any length."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:MAX_COMMENT]


def _flow(value: Any) -> str:
    """Return a value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1 << 20)
    return text.removesuffix("\n").removesuffix("\n...")
