"""``make bench``: all sections, each a program of its own, so that what mostly waits shares time.

Sections that are timed have the machine to themselves. CPU is counted of processes by name, and
memory and EC2 calls do not depend on time, so those go on beside others. A section that fails
leaves its former text in the results; the others go on.
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


def main() -> int:
    """Measure and write the results; return 1 if a section failed."""
    said = subprocess.run([*shipped.python(), "-V"], capture_output=True, text=True, check=True)
    failed: list[str] = []
    for stage in STAGES:
        with ThreadPoolExecutor(len(stage)) as strands:
            for names in strands.map(_run, "abcdefg", stage):
                failed += names
    head = (
        "# Results",
        "",
        "Written by `make bench`. Ratios travel, milliseconds do not.",
        "",
        f"{os.cpu_count()} cores, Linux {platform.release()}; all sides interleaved in one run. "
        f"The reconciler is what the image ships: Debian's {said.stdout.strip()}, the packages of "
        "its lock, its command line.",
        *(["", f"Of an earlier run, because they failed: {', '.join(failed)}."] if failed else ()),
    )
    report.replace_head(report.RESULTS, head)
    return int(any(failed))


def _run(strand: str, sections: Sequence[str]) -> list[str]:
    """Measure sections after one another; return those that failed."""
    failed = []
    for section in sections:
        argv = [sys.executable, "-m", f"benchmarks.{section}"]
        done = subprocess.run(argv, env=os.environ | {"BENCH_STRAND": strand}, check=False)
        if done.returncode:
            report.tell(f"{section} failed: {done.returncode}")
            failed.append(section)
    return failed


if __name__ == "__main__":
    sys.exit(main())
