"""What a look costs that finds nothing to do, with few pods and with many."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from contextlib import ExitStack
from functools import partial

from benchmarks import nodes, processes, report
from benchmarks.connections import passes
from lab.lifecycle import Lab

TITLE = "A pass that changes nothing"

FEW = report.number("PASSES_FEW", 50)
MANY = report.number("PASSES_MANY", 700)
ROUNDS = report.number("PASSES_ROUNDS", 200)
LOOK_S = 1.0
"""Seconds for the daemon to have looked, whatever it waits for before it does."""

CAUSES = {
    "somebody's address comes or goes: a pass over everything": (
        "ip", "address", "{word}", "192.0.2.77/32", "dev", "lo",
    ),
    "somebody's ip rule comes or goes: a look at other owners": (
        "ip", "rule", "{word}", "priority", "77", "from", "192.0.2.77", "lookup", "main",
    ),
}  # fmt: skip
"""What is none of our business, and what follows of it."""


def measure() -> list[str]:
    """Return the section's lines."""
    with ExitStack() as stack:
        sizes = {"node1": MANY, "node2": FEW}
        room = nodes.AT_ONCE + nodes.ROOM
        lab, pids = stack.enter_context(
            nodes.nodes({node: size + room for node, size in sizes.items()})
        )
        for node, size in sizes.items():
            nodes.crowd(lab, f"{node}x", partial(nodes.call_ours, lab, node=node), range(size))
            nodes.settle(lab, node)
        time.sleep(10 * LOOK_S)
        rows, counted = [], []
        for what, command in CAUSES.items():
            before = {node: passes(lab, node) for node in sizes}
            took = _rounds(lab, pids, command)
            counts = {node: passes(lab, node)[1] - before[node][1] for node in sizes}
            many, few = (statistics.median(took[node]) for node in ("node1", "node2"))
            spelled = (report.spell(took[node]) for node in sizes)
            rows.append((what, *spelled, *report.goal(many / few, 1.3)))
            counted += [f"{counts[n] / ROUNDS:.1f} with {size}" for n, size in sizes.items()]
    head = (
        f"CPU of the reconciler, ms, p50 / p99 of {ROUNDS}", f"{MANY} pods", f"{FEW} pods",
        f"{MANY} : {FEW}", "goal",
    )  # fmt: skip
    whole = f"Passes over everything that followed each time, row by row: {', '.join(counted)}."
    return [*report.table(head, rows), "", whole]


def _rounds(lab: Lab, pids: dict[str, int], command: tuple[str, ...]) -> dict[str, list[float]]:
    """Have both look because of something that is none of their business, in random order."""
    chance = random.Random(ROUNDS)
    took: dict[str, list[float]] = {node: [] for node in pids}
    for number in range(ROUNDS):
        if number % 25 == 0:
            report.tell(f"passes, {number} of {ROUNDS}")
        word = "del" if number % 2 else "add"
        change = [part.format(word=word) for part in command]
        before = {node: processes.cpu(pid).all for node, pid in pids.items()}
        for node in chance.sample(list(pids), len(pids)):
            subprocess.run(lab.command(node, change), check=True)
        time.sleep(LOOK_S)
        for node, pid in pids.items():
            took[node].append(1000 * (processes.cpu(pid).all - before[node]))
    return took


if __name__ == "__main__":
    report.write(TITLE, "passes", measure)
