"""Sections of ``benchmarks/results.md``: each is measured, and replaced, by itself."""

from __future__ import annotations

import fcntl
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import goals

RESULTS = Path(os.environ.get("BENCH_RESULTS", Path(__file__).with_name("results.md")))
"""Where sections are written; a short trial names another file."""


def number(name: str, default: float) -> int:
    """Return how many of something are measured; a short trial asks for fewer, by a variable."""
    return int(os.environ.get(name, default))


def p(values: Sequence[float], percent: int) -> float:
    """Return a percentile; of one value, that one."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def spell(values: Sequence[float], digits: int = 1) -> str:
    """Write p50 and p99."""
    return f"{p(values, 50):.{digits}f} / {p(values, 99):.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table in Markdown."""
    lines = (head, ["---"] * len(head), *rows)
    return ["| " + " | ".join(line) + " |" for line in lines]


def goal(
    value: float, bound: float, *, least: bool = False, digits: int = 2, unit: str = ""
) -> tuple[str, str]:
    """Return two cells: a figure, and what it shall be at most, or at least, and whether it is."""
    held = value >= bound if least else value <= bound
    verdict = "held" if held else "not held"
    return f"{value:.{digits}f}{unit}", f"{'≥' if least else '≤'} {bound:g}{unit}: {verdict}"


def tell(what: str) -> None:
    """Say what is measured now."""
    print(f"bench: {what}", file=sys.stderr, flush=True)


def write(
    title: str,
    name: str,
    measure: Callable[[], list[str]],
    path: Path = RESULTS,
    *,
    target: str = "bench",
) -> None:
    """Measure a section, and put it in place of the former one.

    Args:
        title: of the section, without the number signs.
        name: of its module.
        measure: returns its lines.
        path: of the file.
        target: of the Makefile, that runs it among others.
    """
    tell(title)
    load, began = os.getloadavg()[0], time.monotonic()
    lines = measure()
    took_s, end = time.monotonic() - began, os.getloadavg()[0]
    by = (
        f"Written by `make {target}`; this section alone by `python -m benchmarks.{name}`, in "
        f"{took_s / 60:.1f} minutes. The machine's load was {load:.1f} when it began, and "
        f"{end:.1f} when it ended."
    )
    replace_section(path, f"## {title}", [f"## {title}", "", by, "", *lines])
    print("\n".join(lines))


def replace_section(path: Path, title: str, lines: Sequence[str]) -> None:
    """Put lines in place of a section of a Markdown file, or at its end."""
    with _locked(path) as text:
        found = re.search(rf"^{re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        before, after = (text[: found.start()], text[found.end() :]) if found else (text, "")
        section = "\n".join(lines).rstrip()
        rest = f"\n{after}" if after else ""
        head, sections = _parts(f"{before.rstrip()}\n\n{section}\n{rest}".lstrip())
        path.write_text(f"{goals.refresh(head, sections)}\n{sections}".lstrip())


def replace_head(path: Path, lines: Sequence[str]) -> None:
    """Put lines in place of what is before the first section, but for the table of goals."""
    with _locked(path) as text:
        _, sections = _parts(text)
        head = goals.refresh("\n".join(lines), sections)
        path.write_text(f"{head}\n{sections}")


def body(path: Path) -> str:
    """Return a file's sections, without what is before the first one."""
    with _locked(path) as text:
        return _parts(text)[1]


def _parts(text: str) -> tuple[str, str]:
    """Return what is before the first section, and the sections."""
    head, heading, rest = f"\n{text}".partition("\n## ")
    return head.strip("\n"), f"{heading}{rest}"


@contextmanager
def _locked(path: Path) -> Iterator[str]:
    """Have a file for oneself, and its text: sections may end at the same time."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path.read_text()
