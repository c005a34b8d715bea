"""``make bench``: all sections, each a program of its own, so that what mostly waits shares time.

Sections that are timed have the machine to themselves. CPU is counted of processes by name, and
memory and EC2 calls do not depend on time, so those go on beside others.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks import report, shipped

STAGES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("pods", "start"),),
    (("life",), ("passes", "repair")),
    (("memory",), ("calls",)),
    (("connections", "commands", "forwarding"),),
)
"""What goes on after one another; of each stage, the strands that go on at the same time; of each
strand, its sections in their order."""


def main() -> None:
    """Measure and write the results."""
    said = subprocess.run([*shipped.python(), "-V"], capture_output=True, text=True, check=True)
    head = (
        "# Results",
        "",
        "Written by `make bench`. Ratios travel, milliseconds do not.",
        "",
        f"{os.cpu_count()} cores, Linux {platform.release()}; all sides interleaved in one run. "
        f"The reconciler is what the image ships: Debian's {said.stdout.strip()}, the packages of "
        "its lock, its command line.",
    )
    report.replace_head(report.RESULTS, head)
    for stage in STAGES:
        with ThreadPoolExecutor(len(stage)) as strands:
            list(strands.map(_run, "abcdefg", stage))


def _run(strand: str, sections: Sequence[str]) -> None:
    for section in sections:
        argv = [sys.executable, "-m", f"benchmarks.{section}"]
        subprocess.run(argv, env=os.environ | {"BENCH_STRAND": strand}, check=True)


if __name__ == "__main__":
    main()
