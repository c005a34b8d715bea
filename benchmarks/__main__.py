"""``make bench``: pods beside the reference plugins, EC2 calls, repair, rest, and forwarding."""

from __future__ import annotations

import os
import platform
import subprocess

from benchmarks import (
    calls,
    commands,
    connections,
    forwarding,
    life,
    memory,
    passes,
    pods,
    repair,
    report,
    shipped,
    start,
)  # fmt: skip

SECTIONS = (pods, start, life, memory, passes, calls, repair, connections, commands)


def main() -> None:
    """Measure and write the results."""
    said = subprocess.run([*shipped.python(), "-V"], capture_output=True, text=True, check=True)
    head = [
        "# Results",
        "",
        "Written by `make bench`. Ratios travel, milliseconds do not.",
        "",
        f"{os.cpu_count()} cores, Linux {platform.release()}; all sides interleaved in one run. "
        f"The reconciler is what the image ships: Debian's {said.stdout.strip()}, the packages of "
        "its lock, its command line.",
    ]
    text = report.RESULTS.read_text()
    rest = text[text.index("\n## ") :]
    report.RESULTS.write_text("\n".join(head) + "\n" + rest)
    for section in SECTIONS:
        report.write(section.TITLE, section.__name__.rpartition(".")[2], section.measure)
    forwarding.write()


if __name__ == "__main__":
    main()
