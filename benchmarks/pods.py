"""ADD and DEL end to end, beside the reference plugins ``ptp`` with ``host-local``.

Each side is a host of its own with as many pods as the others, but for one that has none, and all
keep their records on a tmpfs, as ``/run`` is on a host. Rounds are interleaved, so that whatever
else the machine does touches all. What travels to other machines is the ratio, not the
milliseconds.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from functools import partial

from benchmarks import nodes, report
from benchmarks.nodes import AT_ONCE, MOST, ROOM, Call
from lab import netns
from lab.lifecycle import Lab

TITLE = "Pods"

ROUNDS = report.number("PODS_ROUNDS", 200)
SEQUENCE = report.number("PODS_SEQUENCE", 1000)
BLOCKS = report.number("PODS_BLOCKS", 10)
"""Parts of a sequence, between which it is the others' turn."""

BURSTS = report.number("PODS_BURSTS", 5)
CLEANUP_S = 10.0
"""Seconds that the kernel is given to clean up namespaces; nothing tells when it has done so."""

BETWEEN_S = 2.0
"""The same after one block of a sequence."""

CROWDS = tuple(sorted({0, min(100, nodes.MANY), nodes.MANY}))
"""Pods that are there already."""

OURS, MASQ, PLAIN = "node-network", "ptp + ipMasq", "ptp"
EMPTY = "node-network with none"
"""Ours on a second node that has no other pods, in every round: what more pods cost is seen beside
it, because a machine gets slower and faster meanwhile by more than that."""

GOALS = {"ADD": 0.95, "DEL": 0.25}
STEMS = {OURS: "po", MASQ: "pq", PLAIN: "pp", EMPTY: "pe"}
"""What the namespaces of a side's pods are called by."""

Times = dict[tuple[str, str], list[float]]
"""Milliseconds by side and verb."""


def measure() -> list[str]:
    """Return the section's lines."""
    with ExitStack() as stack:
        lab, _ = stack.enter_context(nodes.nodes({"node1": MOST, "node2": AT_ONCE + ROOM}))
        sides: dict[str, Call] = {
            OURS: partial(nodes.call_ours, lab),
            MASQ: nodes.peer(lab, "masq", stack, masquerade=True),
            PLAIN: nodes.peer(lab, "plain", stack),
        }
        others: dict[str, Call] = {EMPTY: partial(nodes.call_ours, lab, node="node2")}
        crowded: dict[int, Times] = {}
        there = 0
        for size in CROWDS:
            for side, call in sides.items():
                nodes.crowd(lab, STEMS[side], call, range(there, size))
            there = size
            nodes.settle(lab)
            crowded[size] = _rounds(lab, sides | others, size)
        pair = {side: sides[side] for side in (OURS, PLAIN)}
        whole_s = _sequence(lab, pair)
        bursts = _bursts(lab, pair)
        bursts[MASQ] = [nodes.burst(lab, "bq", sides[MASQ])]
    return [
        "From before the process starts until after it has ended. Ours is the static executable "
        "and the reconciler; theirs are Debian's `ptp` and `host-local`. All keep their records "
        "on a tmpfs.",
        "",
        *_pods_table(crowded),
        "",
        *_sequence_table(whole_s),
        "",
        *_burst_table(bursts),
    ]


def _rounds(lab: Lab, sides: dict[str, Call], crowd: int) -> Times:
    """Let one pod after the other come and go on each side.

    Whoever is next starts when the links of the one before him are gone, some of which go later
    than their DEL; who that is changes from round to round, for something of him may still go on.
    Namespaces are made before and removed after: the kernel cleans up behind everybody's back.
    """
    order, chance = list(sides), random.Random(ROUNDS)
    times: Times = {(side, verb): [] for side in sides for verb in ("ADD", "DEL")}
    # Runtimes give no name twice.
    places = {
        (side, i): lab.names.namespace(f"pod-{STEMS[side]}r{crowd}x{i}")
        for side in sides
        for i in range(ROUNDS)
    }
    nodes.make(places.values())
    for i in range(ROUNDS):
        if i % 50 == 0:
            report.tell(f"{crowd} pods, round {i} of {ROUNDS}")
        chance.shuffle(order)
        for side in order:
            where = places[side, i]
            for verb in ("ADD", "DEL"):
                began = time.perf_counter()
                sides[side](verb, f"r{crowd}-{i}", where)
                times[side, verb].append(1000 * (time.perf_counter() - began))
            nodes.await_end(where)
    nodes.remove(places.values())
    time.sleep(CLEANUP_S)
    return times


def _sequence(lab: Lab, sides: dict[str, Call]) -> dict[str, list[float]]:
    """Let pods come and go as fast as they can, and their namespaces right after them.

    Returns:
        Seconds of each block, by side.
    """
    chance, each = random.Random(SEQUENCE), SEQUENCE // BLOCKS
    took: dict[str, list[float]] = {side: [] for side in sides}
    for block in range(BLOCKS):
        report.tell(f"sequence, block {block} of {BLOCKS}")
        for side in chance.sample(list(sides), len(sides)):
            names = [f"s{block}x{i}" for i in range(each)]
            places = [lab.names.namespace(f"pod-{STEMS[side]}{name}") for name in names]
            nodes.make(places)
            began = time.perf_counter()
            for name, where in zip(names, places, strict=True):
                sides[side]("ADD", name, where)
                sides[side]("DEL", name, where)
                netns.remove(where)
            took[side].append(time.perf_counter() - began)
            time.sleep(BETWEEN_S)
    return took


def _bursts(lab: Lab, sides: dict[str, Call]) -> dict[str, list[list[float]]]:
    """Return the seconds until each pod of a burst had come, burst by burst, by side."""
    chance = random.Random(BURSTS)
    bursts: dict[str, list[list[float]]] = {side: [] for side in sides}
    for number in range(BURSTS):
        report.tell(f"{AT_ONCE} at once, {number} of {BURSTS}")
        for side in chance.sample(list(sides), len(sides)):
            if side == OURS:
                nodes.settle(lab)
            bursts[side].append(nodes.burst(lab, f"b{STEMS[side][1]}{number}x", sides[side]))
            time.sleep(BETWEEN_S)
    return bursts


# -- the tables ---------------------------------------------------------------------------


def _pods_table(crowded: dict[int, Times]) -> list[str]:
    sides = (OURS, MASQ, PLAIN, EMPTY)
    head = (
        f"one pod, end to end; ms, p50 / p99 of {ROUNDS}", *sides, f"ours : {MASQ}",
        f"ours : {PLAIN}", "goal", "ours : ours with none", "ours, p99 : p50", "goal",
        f"{PLAIN}, p99 : p50",
    )  # fmt: skip
    rows = []
    for verb, most in GOALS.items():
        for crowd, times in crowded.items():
            ours = times[OURS, verb]
            ratios = {s: report.p(ours, 50) / report.p(times[s, verb], 50) for s in sides[1:]}
            rows.append((
                f"{verb}, {crowd} pods there",
                *(report.spell(times[side, verb]) for side in sides),
                f"{ratios[MASQ]:.2f}",
                *report.goal(ratios[PLAIN], most),
                f"{ratios[EMPTY]:.2f}",
                *_tail_goal(ours, verb == "ADD" and crowd == max(crowded)),
                f"{_tail(times[PLAIN, verb]):.1f}",
            ))  # fmt: skip
    return report.table(head, rows)


def _tail(values: list[float]) -> float:
    return report.p(values, 99) / report.p(values, 50)


def _tail_goal(values: list[float], is_asked: bool) -> tuple[str, str]:
    return report.goal(_tail(values), 2.0, digits=1) if is_asked else (f"{_tail(values):.1f}", "")


def _sequence_table(took: dict[str, list[float]]) -> list[str]:
    head = (
        f"{SEQUENCE:,} ADD then DEL in sequence, {max(CROWDS)} pods there",
        f"s, of {BLOCKS} blocks in turn", f": {PLAIN}", "goal",
    )  # fmt: skip
    whole = {side: sum(parts) for side, parts in took.items()}
    rows = []
    for side, seconds in whole.items():
        ratio = report.goal(seconds / whole[PLAIN], 0.8) if side == OURS else ("1.00", "")
        rows.append((side, f"{seconds:.1f}", *ratio))
    return report.table(head, rows)


def _burst_table(bursts: dict[str, list[list[float]]]) -> list[str]:
    head = (
        f"{AT_ONCE} ADDs at once, {max(CROWDS)} pods there", "bursts", "all answered, s, median",
        f": {PLAIN}", "goal", "the median ADD, s", "p50 : last", "goal",
    )  # fmt: skip
    last = {side: report.p([max(each) for each in of], 50) for side, of in bursts.items()}
    rows = []
    for side, of in bursts.items():
        mine = side == OURS
        middle = report.p([report.p(each, 50) for each in of], 50)
        early = report.p([report.p(each, 50) / max(each) for each in of], 50)
        ratio = last[side] / last[PLAIN]
        rows.append((
            side, str(len(of)), f"{last[side]:.2f}",
            *(report.goal(ratio, 0.6) if mine else (f"{ratio:.2f}", "")), f"{middle:.2f}",
            *(report.goal(early, 0.55) if mine else (f"{early:.2f}", "")),
        ))  # fmt: skip
    return report.table(head, rows)


if __name__ == "__main__":
    report.write(TITLE, "pods", measure)
