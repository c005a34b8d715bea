"""What the commands of a person on call take, beside commands that everybody has."""

from __future__ import annotations

import resource
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial

from benchmarks import nodes, report, shipped
from lab.lifecycle import Lab

TITLE = "Commands"

PODS = 100
RUNS = 20


def measure() -> list[str]:
    """Return the section in Markdown."""
    with nodes.node(PODS + nodes.AT_ONCE + nodes.ROOM) as (lab, _):
        nodes.crowd(lab, "c", partial(nodes.call_ours, lab), range(PODS))
        nodes.settle(lab)
        took = _measure(lab)
    base = took["ip -j addr"][0]
    rows = [
        f"| `{name}` | {cpu_ms:.0f} | {wall_ms:.0f} | {cpu_ms / base:.1f} |"
        for name, (cpu_ms, wall_ms) in took.items()
    ]
    return [
        "From "
        f"before a process starts until after it has ended, on a node with {PODS} pods, all of "
        "them in turn. `diff` asks EC2, which is the lab's. Wall times are as good as the load is "
        "low.",
        "",
        f"| median of {RUNS} | CPU, ms | wall, ms | CPU : `ip -j addr` |",
        "|---|---|---|---|",
        *rows,
    ]


def _measure(lab: Lab) -> dict[str, tuple[float, float]]:
    """Return milliseconds of CPU and of wall, by command."""
    document = ("-f", nodes.status(lab)["document"]["path"])
    ours = {
        "status": (),
        "--help": (),
        "explain condition": ("UnauthorizedOperation",),
        "validate": document[1:],
        "explain pod": ("c0", *document),
        "diff": document,
    }
    commands: dict[str, Sequence[str]] = {"ip -j addr": ("ip", "-j", "addr")}
    for name, arguments in ours.items():
        commands[f"node-network {name}"] = (*shipped.command(), *name.split(), *arguments)
    if shutil.which("kubectl"):
        commands["kubectl version --client"] = ("kubectl", "version", "--client")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(RUNS + 1):
        print(f"commands: {number} of {RUNS}", file=sys.stderr, flush=True)
        for name, argv in commands.items():
            one = _run(lab, argv)
            if number:  # the first one reads programs from the disk
                taken[name].append(one)
    return {
        name: (statistics.median(c for c, _ in of), statistics.median(w for _, w in of))
        for name, of in taken.items()
    }


def _run(lab: Lab, argv: Sequence[str]) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = lab.run("node1", argv)
    if done.returncode > 1:  # 1: something differs, or is a condition
        raise RuntimeError(done.stderr)
    wall_s = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1000 * cpu_s, 1000 * wall_s


if __name__ == "__main__":
    report.write(TITLE, "commands", measure)
