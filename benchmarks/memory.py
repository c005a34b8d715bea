"""Memory that cannot be dropped, after thousands of pods, of the reconciler and all it starts.

Counted is private dirty memory (proc(5), ``smaps_rollup``): what only one process has, and has
written to. Page cache and what processes share are left out on purpose: the kernel can take them
back, or has them once.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks import nodes, processes, report
from benchmarks.nodes import MANY, Call
from lab import netns
from lab.lifecycle import Lab

TITLE = "Memory"

CHURN = report.number("MEMORY_CHURN", 5000)
CROWD = MANY
WORKERS = 4
BURST_EVERY = 1000
QUIET_S = 30.0
"""Seconds until it is idle: longer than the process that calls EC2 waits for another call."""


def measure() -> list[str]:
    """Return the section's lines."""
    with nodes.node(minimum=CROWD + nodes.AT_ONCE + nodes.ROOM) as (lab, pid):
        call = partial(nodes.call_ours, lab)
        nodes.settle(lab)
        start = processes.private_mib(pid)
        nodes.crowd(lab, "m", call, range(CROWD))
        nodes.settle(lab)
        with processes.Memory(pid) as memory:
            failed = _churn(lab, call)
            _edit(lab)
            nodes.settle(lab)
            time.sleep(QUIET_S)
        rest = processes.private_mib(pid)
        total = sum(map(processes.private_mib, (pid, *processes.descendants(pid))))
    worst, parts = memory.worst
    spelt = ", ".join(f"{_program(name)} {mib:.0f}" for name, mib in parts.items())
    head = (f"private dirty memory, MiB; {CROWD} pods there", "", "goal")
    rows = (
        ("the reconciler, after the start", f"{start:.1f}", ""),
        (
            f"the reconciler, {QUIET_S:g} s after {CHURN:,} pods came and went",
            *report.goal(rest, 28, digits=1),
        ),
        ("all processes then", f"{total:.1f}", ""),
        (
            f"all processes in the worst tenth of a second meanwhile ({spelt})",
            *report.goal(worst, 70, digits=1),
        ),
    )
    return [
        f"{WORKERS} pods at a time, {nodes.AT_ONCE} at once before every {BURST_EVERY:,}, and in "
        f"the end an edit of the document. ADDs that failed: {len(failed)} of {CHURN:,}"
        f"{''.join(f'; {why}' for why in failed[:3])}.",
        "",
        *report.table(head, rows),
    ]


def _churn(lab: Lab, call: Call) -> list[str]:
    """Let pods come and go: some at a time, and now and then many at once.

    Returns:
        What was said of those that were refused; a runtime would try again.
    """
    failed: list[str] = []

    def cycle(number: int) -> None:
        where = lab.names.namespace(f"pod-i{number}")
        netns.make(where)
        try:
            call("ADD", f"i{number}", where)
        except nodes.CallError as error:
            failed.append(str(error))
        call("DEL", f"i{number}", where)
        netns.remove(where)

    for begin in range(0, CHURN, BURST_EVERY):
        report.tell(f"{begin} of {CHURN} pods")
        at_once = min(nodes.AT_ONCE, CHURN - begin)
        nodes.burst(lab, "mb", call, at_once)
        end = min(begin + BURST_EVERY, CHURN)
        with ThreadPoolExecutor(WORKERS) as workers:
            list(workers.map(cycle, range(begin + at_once, end)))
    return failed


def _edit(lab: Lab) -> None:
    """Write the document anew, as an editor does."""
    path = Path(nodes.status(lab)["document"]["path"])
    text = path.read_text()
    path.write_text(f"{text}# edited\n")


def _program(line: str) -> str:
    """Name a process by its command line, which its number comes before."""
    _, _, module = line.partition(" -m ")
    words = (module or line.partition(" ")[2]).split()
    return "the reconciler" if "run" in words else words[0].rpartition(".")[2]


if __name__ == "__main__":
    report.write(TITLE, "memory", measure)
