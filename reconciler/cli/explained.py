"""How an explanation is printed: for people, or as ``schemas/explain.py`` publishes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from reconciler.cli.screen import screen_of

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that is said: what it is about, in words, and what belongs to it."""

    about: str
    text: str
    parts: tuple[Told, ...] = ()


def rows(pairs: Iterable[tuple[str, str]]) -> tuple[Told, ...]:
    """Return headings and texts as things that are said."""
    return tuple(Told(about, text) for about, text in pairs)


def lines(texts: Iterable[str]) -> tuple[Told, ...]:
    """Return lines, each of its own."""
    return tuple(Told("", text) for text in texts)


def as_json(subject: str, name: str | None, told: Iterable[Told]) -> str:
    """Return the published format."""
    head = {"formatVersion": FORMAT_VERSION, "subject": subject, "name": name}
    return json.dumps(head | {"explained": [_body(t) for t in told]}, indent=2)


def _body(told: Told) -> dict[str, Any]:
    parts = [_body(part) for part in told.parts]
    return {"about": told.about, "text": told.text, "parts": parts}


def show(output: str, subject: str, name: str | None, told: Iterable[Told]) -> None:
    """Print it; ``output``: text or json."""
    told = tuple(told)
    text = as_json(subject, name, told) if output == "json" else "\n".join(_as_text(told))
    if text:
        click.echo(text)


def _as_text(told: tuple[Told, ...]) -> Iterator[str]:
    """Yield lines: a table of headings and texts, parts below what they belong to."""
    screen = screen_of(sys.stdout)
    pairs = [(t.about, t.text) for one in told for t in (one, *one.parts)]
    if any(about for about, _ in pairs):
        yield from screen.table(pairs)
    else:
        yield from (text for _, text in pairs)
