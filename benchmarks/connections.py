"""Pods on a node whose connection table is full of others', beside one whose table is empty.

Two nodes of one lab, in every round, in changing order: what the table costs is seen beside a node
that has none, because a machine gets slower and faster meanwhile by more than that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from benchmarks import nodes, report
from benchmarks.pods import Times
from lab import flows, netns
from lab.lifecycle import Lab

TITLE = "Connections"

ENTRIES = 100_000
"""Half of them of one pod, which leaves in the end."""

ROUNDS = report.number("CONNECTION_ROUNDS", 1000)
"""So many that ten are slower than p99: of 300, that is three, and chance."""

GOAL = 1.2
FULL, EMPTY = "node1", "node2"
COOLDOWN = "2s"
"""So that addresses cool, and are asked for, all the time."""


def measure() -> list[str]:
    """Return the section in Markdown."""
    minimum = nodes.AT_ONCE + 32
    with nodes.nodes({FULL: minimum, EMPTY: minimum}, cooldown=COOLDOWN) as (lab, pids):
        greedy = lab.names.namespace("pod-greedy")
        netns.make(greedy)
        nodes.call_ours(lab, "ADD", "greedy", greedy)
        ((address,),) = (a["addresses"] for a in nodes.status(lab, FULL)["attachments"])
        with netns.inside(lab.names.namespace(FULL)):
            flows.open_many(ip_address(address), ENTRIES // 2)
            flows.open_many(ip_address("198.51.100.1"), ENTRIES // 2)
        before = {node: passes(lab, node) for node in (FULL, EMPTY)}
        times = rounds(lab, ROUNDS, "connections")
        pass_ms = {node: mean_pass_ms(before[node], passes(lab, node)) for node in before}
        left_s, growth_mib = _leave(lab, pids[FULL], greedy, address)
    return [
        f"Addresses cool for {COOLDOWN}, so that conntrack is asked about each of them.",
        "",
        *report.table(
            [f"{ROUNDS} pods come and go; ms", f"{ENTRIES:,} entries", "none", "ratio", "goal"],
            [*_rows(times), _row("a pass of the loop that serves pods, mean", pass_ms)],
        ),
        "",
        f"The pod with {ENTRIES // 2:,} entries leaves: {left_s:.1f} s after its DEL was answered "
        f"none of them is left; the reconciler's resident memory has grown by {growth_mib:.1f} "
        "MiB at most meanwhile.",
    ]


def rounds(lab: Lab, number: int, title: str) -> Times:
    """Let pods come and go one after the other, on both nodes in turn, in changing order."""
    chance, order = random.Random(number), [FULL, EMPTY]
    calls = {node: partial(nodes.call_ours, lab, node=node) for node in order}
    times: Times = {(node, verb): [] for node in order for verb in ("ADD", "DEL")}
    for which in range(number):
        if which % 100 == 0:
            report.tell(f"{title}, {which} of {number}")
        chance.shuffle(order)
        for node in order:
            where = lab.names.namespace(f"pod-{node}x{which}")
            netns.make(where)
            for verb in ("ADD", "DEL"):
                began = time.perf_counter()
                calls[node](verb, f"x{which}", where)
                times[node, verb].append(1000 * (time.perf_counter() - began))
            netns.remove(where)
    return times


def _leave(lab: Lab, pid: int, where: str, address: str) -> tuple[float, float]:
    """End the pod that has very many; return seconds until all are gone, and MiB of growth."""
    proc = Path(f"/proc/{pid}")
    (proc / "clear_refs").write_text("5")
    before = _peak_mib(proc)
    nodes.call_ours(lab, "DEL", "greedy", where)
    netns.remove(where)
    began = time.perf_counter()
    with netns.inside(lab.names.namespace(FULL)):
        while flows.count() > ENTRIES // 2 + 1_000:
            if time.perf_counter() - began > nodes.SETTLE_LIMIT_S:
                raise TimeoutError(f"connections of {address} do not end")
            time.sleep(0.01)
    return time.perf_counter() - began, _peak_mib(proc) - before


def _rows(times: Times) -> Iterator[list[str]]:
    for verb in ("ADD", "DEL"):
        for name, percent in (("p50", 50), ("p99", 99)):
            ms = {node: report.p(times[node, verb], percent) for node in (FULL, EMPTY)}
            yield _row(f"{verb}, {name}", ms)


def _row(what: str, ms: Mapping[str, float]) -> list[str]:
    ratio = report.goal(ms[FULL] / ms[EMPTY], GOAL)
    return [what, f"{ms[FULL]:.2f}", f"{ms[EMPTY]:.2f}", *ratio]


def passes(lab: Lab, node: str) -> tuple[float, float]:
    """Return the seconds of all passes, and their number."""
    lines = str(nodes.status(lab, node)["metrics"]).splitlines()

    def total(word: str) -> float:
        starts = tuple(
            f'node_network_pass_seconds_{word}{{pass="{p}"}}' for p in nodes.NODE_PASSES
        )
        return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(starts))

    return total("sum"), total("count")


def mean_pass_ms(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return the mean milliseconds of the passes between two looks."""
    return 1000 * (after[0] - before[0]) / (after[1] - before[1])


def _peak_mib(proc: Path) -> float:
    lines = (proc / "status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    report.write(TITLE, "connections", measure)
