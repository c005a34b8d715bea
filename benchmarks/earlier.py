"""This release beside an earlier one of the repository's history, on two nodes of one lab.

The earlier release is ``BENCH_EARLIER``, a commit. Its daemon runs in the same Python and with the
same CNI executable; pods come and go on each node in turn, in changing order.
"""

from __future__ import annotations

import os
import statistics
import time
from functools import partial
from pathlib import Path

from benchmarks import pods, release
from benchmarks.connections import EMPTY, FULL, mean_pass_ms, passes, rounds
from lab.lifecycle import Lab

RESULTS = Path(__file__).with_name("results.md")
TITLE = "## This release beside an earlier one"
EARLIER = os.environ.get("BENCH_EARLIER", "HEAD~1")
ROUNDS = int(os.environ.get("EARLIER_ROUNDS", "300"))
CROWD = 50
"""Pods that are on each node meanwhile."""

IDLE_S = 30.0
"""Seconds without a pod, with a full pass each second because a rule is added and deleted."""

NOW, THEN = FULL, EMPTY


def measure() -> list[str]:
    """Return the section in Markdown."""
    commit = release.abbreviate(EARLIER)
    with release.unpacked(EARLIER, "reconciler", "cni", "schemas") as place:
        words = {THEN: ["env", *(f"{k}={v}" for k, v in release.environment(place).items())]}
        minimum = pods.AT_ONCE + CROWD
        with pods.nodes({NOW: minimum, THEN: minimum}, earlier=words) as (lab, pids):
            for node in (NOW, THEN):
                pods.crowd(lab, node, partial(pods.call_ours, lab, node=node), range(CROWD))
            times = rounds(lab, ROUNDS, "earlier")
            idle = _idle(lab)
            memory = {node: _private_mib(pids[node]) for node in pids}
    rows: list[tuple[str, float, float]] = [
        (
            f"{verb}, ms, p{percent}",
            _quantile(times[NOW, verb], percent),
            _quantile(times[THEN, verb], percent),
        )
        for verb in ("ADD", "DEL")
        for percent in (50, 99)
    ]
    rows += [
        (f"a full pass that changes nothing, {CROWD} pods, ms", idle[NOW], idle[THEN]),
        ("memory of the daemon's own, at rest, MiB", memory[NOW], memory[THEN]),
    ]
    lines = []
    for what, now, then in rows:
        lines.append(f"| {what} | {now:.2f} | {then:.2f} | {now / then:.2f} |")
    return [
        TITLE,
        "",
        f"Written by `BENCH_EARLIER={commit} python -m benchmarks.earlier`: {ROUNDS} pods come "
        f"and go, {CROWD} stay.",
        "",
        f"| | now | {commit} | now : {commit} |",
        "|---|---|---|---|",
        *lines,
    ]


def _idle(lab: Lab) -> dict[str, float]:
    """Have both look at everything once a second; return the mean milliseconds of a pass."""
    for node in (NOW, THEN):
        pods.settle(lab, node)
    before = {node: passes(lab, node) for node in (NOW, THEN)}
    deadline = time.monotonic() + IDLE_S
    while time.monotonic() < deadline:
        for node in (NOW, THEN):
            for verb in ("add", "del"):
                rule = ["ip", "rule", verb, "from", "192.0.2.1", "lookup", "main", "pref", "30000"]
                lab.run(node, rule)
        time.sleep(1.0)
    return {node: mean_pass_ms(before[node], passes(lab, node)) for node in before}


def _private_mib(pid: int) -> float:
    """Memory that only this process has and that has been written to, after it came to rest."""
    time.sleep(5.0)
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("Private_Dirty")) / 1024


def _quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    pods.replace_section(RESULTS, TITLE, measure())
    print(RESULTS.read_text())
