"""``make bench``: pods beside the reference plugins, EC2 calls, repair, rest, and forwarding."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from benchmarks import calls, commands, connections, forwarding, idle, pods, repair

RESULTS = Path(__file__).with_name("results.md")


def main() -> None:
    """Measure and write the results."""
    head = [
        "# Results",
        "",
        "Written by `make bench`. Ratios travel, milliseconds do not.",
        "",
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python "
        f"{platform.python_version()}; all sides interleaved in one run.",
        "",
        "## Pods",
        "",
        "From before the process starts until after it has ended. Ours is the static executable "
        "and the reconciler; theirs are Debian's `ptp` and `host-local`. All keep their records "
        "on a tmpfs.",
        "",
    ]
    others = RESULTS.read_text().split("\n## ")[1:]
    RESULTS.write_text("\n".join([*head, *pods.measure(), ""]) + "\n")
    calls.write(RESULTS)
    repair.write(RESULTS)
    connections.write(RESULTS)
    idle.write(RESULTS)
    commands.write(RESULTS)
    forwarding.write(RESULTS)
    for section in others:  # what other commands have measured stays
        title = f"## {section.splitlines()[0]}"
        if title not in RESULTS.read_text().splitlines():
            pods.replace_section(RESULTS, title, f"## {section}".splitlines())
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
