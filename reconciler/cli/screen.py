"""Where output goes: how wide it is, and whether it shows colours.

Own code, because all there is to it is ``textwrap`` and ``click.style``, which are loaded anyway;
rich takes 20 to 25 ms more, a third of what ``status`` takes in all, and 14 MB of an image.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import click

NARROWEST, USUAL = 40, 80
"""Columns: below the first nothing is wrapped for, and the second is taken if a terminal does not
say how wide it is."""

GREEN, YELLOW, RED = ({"fg": colour} for colour in ("green", "yellow", "red"))
BOLD, DIM = {"bold": True}, {"dim": True}


@dataclass(frozen=True, slots=True)
class Screen:
    """A terminal, or something that reads lines.

    ``width``: columns; 0 for what is no terminal: each entry is one line there, as long as it is.
    """

    width: int = 0
    colour: bool = False

    def paint(self, text: str, **style: Any) -> str:
        """Return a text in a colour, if there are any."""
        return click.style(text, **style) if self.colour and text else text

    def wrap(self, text: str, first: str = "", rest: str = "") -> Iterator[str]:
        """Break a text between words; a longer word has a line of its own.

        ``first`` and ``rest`` begin the first line, and those that follow.
        """
        if not self.width:
            yield first + text
            return
        yield from textwrap.wrap(
            text,
            max(self.width, NARROWEST),
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def table(self, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Yield headings and, in a second column, texts.

        What cannot be printed is left out: a text may have another program's words in it.
        """
        rows = list(rows)
        indent = max((len(heading) for heading, _ in rows), default=0) + 2
        for heading, text in rows:
            printed = "".join(c if c.isprintable() else " " for c in text)
            start = f"{heading:<{indent}}"
            lines = self.wrap(" ".join(printed.split()), start, " " * indent)
            yield from lines


PIPE = Screen()


def screen_of(stream: TextIO) -> Screen:
    """Say what a stream leads to. ``NO_COLOR`` is honoured (no-color.org), and a dumb terminal."""
    if not stream.isatty():
        return PIPE
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except OSError:
        width = 0
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return Screen(width or USUAL, colour=not plain)
