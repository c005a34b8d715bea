"""This release beside an earlier one of the repository's history, on two nodes of one lab.

The earlier release is ``BENCH_EARLIER``, a commit. Its daemon runs in the same Python and with the
same CNI executable; pods come and go on each node in turn, in changing order.
"""

from __future__ import annotations

import os
import time
from functools import partial

from benchmarks import nodes, processes, release, report, shipped
from benchmarks.connections import EMPTY, FULL, rounds
from lab.lifecycle import Lab

TITLE = "This release beside an earlier one"
EARLIER = os.environ.get("BENCH_EARLIER", "HEAD~1")
ROUNDS = int(os.environ.get("EARLIER_ROUNDS", "300"))
CROWD = 50
"""Pods that are on each node meanwhile."""

LOOKS = report.number("EARLIER_LOOKS", 60)
"""Rules that come or go, one a second, while there is no pod."""

REST_S = 5.0
"""Seconds in which it comes to rest before its memory is read."""

NOW, THEN = FULL, EMPTY


def measure() -> list[str]:
    """Return the section in Markdown."""
    commit = release.abbreviate(EARLIER)
    with release.unpacked(EARLIER, "reconciler", "cni", "schemas") as place:
        variables = (f"{k}={v}" for k, v in release.environment(place).items())
        command = {THEN: ["env", *variables, *shipped.python(), "-m", "reconciler"]}
        minimum = nodes.AT_ONCE + CROWD
        with nodes.nodes({NOW: minimum, THEN: minimum}, earlier=command) as (lab, pids):
            for node in (NOW, THEN):
                nodes.crowd(lab, node, partial(nodes.call_ours, lab, node=node), range(CROWD))
            times = rounds(lab, ROUNDS, "earlier")
            looks = _looks(pids, lab)
            time.sleep(REST_S)
            memory = {node: processes.private_mib(pids[node]) for node in pids}
    rows: list[tuple[str, float, float]] = [
        (
            f"{verb}, ms, p{percent}",
            report.p(times[NOW, verb], percent),
            report.p(times[THEN, verb], percent),
        )
        for verb in ("ADD", "DEL")
        for percent in (50, 99)
    ]
    rows += [
        (
            f"CPU after somebody's rule came or went, {CROWD} pods, ms, p50",
            looks[NOW],
            looks[THEN],
        ),
        ("memory of the daemon's own, at rest, MiB", memory[NOW], memory[THEN]),
    ]
    lines = []
    for what, now, then in rows:
        lines.append(f"| {what} | {now:.2f} | {then:.2f} | {now / then:.2f} |")
    return [
        f"The earlier one is {commit} (`BENCH_EARLIER`); {ROUNDS} pods come and go, {CROWD} stay.",
        "",
        f"| | now | {commit} | now : {commit} |",
        "|---|---|---|---|",
        *lines,
    ]


def _looks(pids: dict[str, int], lab: Lab) -> dict[str, float]:
    """Have both look because somebody's rule comes or goes; return the median CPU, in ms."""
    for node in (NOW, THEN):
        nodes.settle(lab, node)
    took: dict[str, list[float]] = {node: [] for node in (NOW, THEN)}
    for number in range(LOOKS):
        word = "del" if number % 2 else "add"
        rule = ["ip", "rule", word, "from", "192.0.2.1", "lookup", "main", "pref", "30000"]
        before = {node: processes.cpu(pids[node]).all for node in took}
        for node in took:
            lab.run(node, rule)
        time.sleep(1.0)
        for node, each in took.items():
            each.append(1000 * (processes.cpu(pids[node]).all - before[node]))
    return {node: report.p(each, 50) for node, each in took.items()}


if __name__ == "__main__":
    report.write(TITLE, "earlier", measure)
