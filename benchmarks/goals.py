"""All goals, and whether each is held: read from the tables that the sections have written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

VERDICT = re.compile(r"([≤≥] [\d.]+(?: %)?): (held|not held)")
BEGIN = re.compile(r"^\d+ of \d+ goals are held", re.MULTILINE)
SIZE = "pods there"
"""Column that tells rows of one name apart."""


class Goal(NamedTuple):
    """One figure with a goal: where it is, what it is, and the goal's cell."""

    section: str
    what: str
    figure: str
    verdict: str


def read(text: str) -> Iterator[Goal]:
    """Yield the goals in the sections of a file of results, in its order."""
    section = ""
    head: list[str] = []
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not head:
            head = cells
            continue
        for place, cell in enumerate(cells):
            if section and place and VERDICT.fullmatch(cell):
                yield Goal(section, _name(head, cells, place - 1), cells[place - 1], cell)


def _name(head: list[str], cells: list[str], place: int) -> str:
    words = [head[0], cells[0]]
    if SIZE in head:
        words.append(f"{cells[head.index(SIZE)]} {SIZE}")
    return "; ".join(word for word in (*words, head[place]) if word)


def refresh(head: str, sections: str) -> str:
    """Return the head of a file of results with the table of all goals at its end."""
    kept = BEGIN.split(head)[0].rstrip()
    goals = list(read(sections))
    if not goals:
        return kept
    held = sum(goal.verdict.endswith(": held") for goal in goals)
    lines = [
        f"{held} of {len(goals)} goals are held. The sections below say how each was measured.",
        "",
        "| figure | | goal |",
        "|---|---|---|",
        *(f"| {goal.what} | {goal.figure} | {goal.verdict} |" for goal in goals),
    ]
    return "\n".join([kept, "", *lines]).lstrip()
