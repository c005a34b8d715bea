"""Times and counts of a run: said when they are known, and a table at its end."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.report import replace_section
from lab.kubernetes.build import RELEASE

FILE = "RESULTS"
"""Environment variable that names the Markdown file whose section is written."""

TARGETS = {"short": "e2e", "long": "e2e-long"}

_began = time.monotonic()
_load = os.getloadavg()[0]
_rows: dict[str, list[str]] = {}


def note(what: str, value: str) -> None:
    """Keep a figure; of what is measured several times, every value."""
    _rows.setdefault(what, []).append(value)


def table(form: str, counts: str) -> list[str]:
    """Return the section of a run, as lines of Markdown.

    Args:
        form: of the tests: short or long.
        counts: how many have passed and failed.
    """
    loads = f"{_load:.1f} when it began, {os.getloadavg()[0]:.1f} when it ended"
    lines = [
        f"## A real Kubernetes cluster ({form} form)",
        "",
        f"Written by `make {TARGETS[form]} RESULTS=benchmarks/results.md`: two lab nodes "
        f"(m5.xlarge, m5.large) with kubelet, containerd and kube-proxy {RELEASE}, the shipped "
        f"image and manifest. {time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} cores, "
        f"load {loads}.",
        "",
        "| | |",
        "|---|---|",
        f"| tests; in all, s | {counts}; {time.monotonic() - _began:.0f} |",
    ]
    return [*lines, *(f"| {what} | {' / '.join(values)} |" for what, values in _rows.items()), ""]


def write(lines: list[str]) -> None:
    """Put a section in the file that the environment names, if it does."""
    if name := os.environ.get(FILE):
        replace_section(Path(name), lines[0], lines)
