"""CPU of one pod's life, by all processes that have to do with it, and of a node at rest.

Counted are the executables, the reconciler and all that it starts, such as the process that calls
EC2; of the reference plugins, which have no daemon, the executables. What the kernel does later in
threads of its own is not counted on either side. CPU does not depend on who else waits, so all
nodes are there at once: pods that come one by one on four of them, while a fifth is idle and a
sixth has a pod replaced now and then.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from benchmarks import nodes, processes, report
from benchmarks.nodes import AT_ONCE, LAB, MANY, ROOM, Call
from benchmarks.processes import Cpu
from lab import netns
from lab.lifecycle import Lab

TITLE = "CPU of one pod's life, and at rest"

ROUNDS = report.number("LIFE_ROUNDS", 200)
BLOCK = report.number("LIFE_BLOCK", 25)
"""Pods that come back to back before another node's turn."""

ISOLATED = report.number("LIFE_ISOLATED", 200)
GAP_S = 3.0
"""Seconds from one isolated pod's ADD to the next one's; its DEL is half way."""

REPLACED_S = 5.0
"""The same on the node that is measured over all of the time."""

TAIL_S = 3.0
"""Seconds after the last pod in which what it has led to is counted still."""

CROWD = MANY
OURS, PEER = "node-network", "ptp + host-local"


@dataclass
class Side:
    """A node, ours or a peer's, and what its pods took.

    Attributes:
        stem: of the names of its pods' namespaces.
        pid: of our reconciler; None where there is no daemon.
        executables: CPU ms of each pod's ADD and DEL.
        daemon: CPU ms of the reconciler alone, for each pod or block of pods.
        others: of what it has started.
    """

    who: str
    stem: str
    crowd: int
    call: Call
    lab: Lab
    pid: int | None = None
    executables: list[float] = field(default_factory=list)
    daemon: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def look(self) -> Cpu:
        """Return what its daemon has taken so far."""
        return Cpu(0.0, 0.0) if self.pid is None else processes.cpu(self.pid)

    def count(self, since: Cpu, pods: int = 1) -> Cpu:
        """Count what the daemon has taken for some pods."""
        now = self.look()
        took = now - since
        self.daemon.append(1000 * took.own / pods)
        self.others.append(1000 * (took.all - took.own) / pods)
        return now

    def come(self, name: str) -> None:
        """Let a pod come."""
        where = self.lab.names.namespace(f"pod-{self.stem}{name}")
        netns.make(where)
        self.executables.append(1000 * processes.run_s(partial(self.call, "ADD", name, where)))

    def leave(self, name: str) -> None:
        """Let it go."""
        where = self.lab.names.namespace(f"pod-{self.stem}{name}")
        self.executables[-1] += 1000 * processes.run_s(partial(self.call, "DEL", name, where))
        netns.remove(where)

    def forget(self) -> None:
        """Begin anew."""
        self.executables, self.daemon, self.others = [], [], []


@dataclass(frozen=True)
class Life:
    """CPU ms of one pod's life, of many.

    Attributes:
        all: mean, executables included.
        daemon: mean, of the reconciler alone.
    """

    pods: int
    executables: float
    daemon: float
    others: float
    spread: str

    @property
    def all(self) -> float:
        return self.executables + self.daemon + self.others


def measure() -> list[str]:
    """Return the section's lines."""
    with ExitStack() as stack:
        room = AT_ONCE + ROOM
        few = stack.enter_context(nodes.nodes({"node1": CROWD + room, "node2": room}))
        rest = stack.enter_context(
            nodes.nodes({"node1": CROWD + room, "node2": CROWD + room}, name=f"{LAB}r")
        )
        sides = [
            _ours(few, "node1", CROWD),
            _ours(few, "node2", 0),
            Side(PEER, "pm", CROWD, nodes.peer(few[0], "many", stack), few[0]),
            Side(PEER, "pn", 0, nodes.peer(few[0], "none", stack), few[0]),
        ]
        resting, replaced = _ours(rest, "node1", CROWD), _ours(rest, "node2", CROWD)
        for side in (*sides, resting, replaced):
            nodes.crowd(side.lab, f"{side.stem}c", side.call, range(side.crowd))
        for lab, pids in (few, rest):
            for node in pids:
                nodes.settle(lab, node)
        _back_to_back(sides)
        lines = _lives_table("back to back", _lives(sides))
        for side in sides:
            side.forget()
        before, began = (resting.look(), replaced.look()), time.monotonic()
        _isolated(sides, replaced)
        taken_s = time.monotonic() - began
        lines += ["", *_lives_table(f"isolated, one every {GAP_S:g} s", _lives(sides))]
        shares = {
            "nothing happens": (resting.look() - before[0], 0.0, 0.1),
            f"a pod is replaced every {REPLACED_S:g} s": (
                replaced.look() - before[1], sum(replaced.executables) / 1000, 0.4,
            ),
        }  # fmt: skip
    return [*lines, "", *_share_table(shares, taken_s)]


def _ours(where: tuple[Lab, dict[str, int]], node: str, crowd: int) -> Side:
    lab, pids = where
    return Side(OURS, node, crowd, partial(nodes.call_ours, lab, node=node), lab, pids[node])


def _back_to_back(sides: Sequence[Side]) -> None:
    """Let each node's pods come and go as fast as they can, block by block in random order."""
    chance = random.Random(ROUNDS)
    time.sleep(TAIL_S)
    for block in range(0, ROUNDS, BLOCK):
        report.tell(f"back to back, {block} of {ROUNDS}")
        for side in chance.sample(sides, len(sides)):
            before = side.look()
            for number in range(block, block + BLOCK):
                side.come(f"b{number}")
                side.leave(f"b{number}")
            if side.pid is not None:
                time.sleep(TAIL_S)
            side.count(before, BLOCK)


def _isolated(sides: Sequence[Side], replaced: Side) -> None:
    """Let pods come one by one, each node's at its own time of every ``GAP_S``."""
    events: list[tuple[float, Callable[[], object]]] = []
    looks: dict[int, Cpu] = {}

    def come(which: int, number: int) -> None:
        side = sides[which]
        if number:
            looks[which] = side.count(looks[which])
        else:
            looks[which] = side.look()
        side.come(f"i{number}")

    for number in range(ISOLATED):
        for which, side in enumerate(sides):
            at = GAP_S * (number + which / (2 * len(sides)))
            events.append((at, partial(come, which, number)))
            events.append((at + GAP_S / 2, partial(side.leave, f"i{number}")))
    span = GAP_S * ISOLATED
    for number in range(int(span / REPLACED_S)):
        at = REPLACED_S * number + 0.2
        events.append((at, partial(replaced.come, f"i{number}")))
        events.append((at + REPLACED_S / 2, partial(replaced.leave, f"i{number}")))
    began = time.monotonic()
    for done, (at, act) in enumerate(sorted(events, key=lambda e: e[0])):
        time.sleep(max(0.0, began + at - time.monotonic()))
        if done % 100 == 0:
            report.tell(f"isolated pods, {at:.0f} of {span:.0f} s")
        act()
    for which, side in enumerate(sides):
        time.sleep(max(0.0, began + span + GAP_S * which / (2 * len(sides)) - time.monotonic()))
        side.count(looks[which])


def _lives(sides: Sequence[Side]) -> dict[tuple[str, int], Life]:
    return {
        (side.who, side.crowd): Life(
            len(side.executables),
            statistics.fmean(side.executables),
            statistics.fmean(side.daemon),
            statistics.fmean(side.others),
            _spread(side),
        )
        for side in sides
    }


def _spread(side: Side) -> str:
    """Write p50 and p99, where it is known pod by pod."""
    if len(side.daemon) < len(side.executables):
        return ""
    parts = zip(side.executables, side.daemon, side.others, strict=True)
    return report.spell([sum(pod) for pod in parts])


def _lives_table(how: str, lives: dict[tuple[str, int], Life]) -> list[str]:
    head = (
        f"CPU of one pod's life, ms: {how}", "pods there", "executables", "daemon",
        "what it starts", "all: mean", "p50 / p99", f"daemon : {PEER}", "goal",
        f"all : {PEER}", "goal", "all : all with none", "goal",
    )  # fmt: skip
    rows = []
    for (who, crowd), life in sorted(lives.items(), key=lambda x: (x[0][0], x[0][1])):
        ratios = [""] * 6
        if who == OURS:
            peer, alone = lives[PEER, crowd].all, lives[OURS, 0].all
            ratios = [
                *report.goal(life.daemon / peer, 0.5),
                *report.goal(life.all / peer, 0.8),
                *(report.goal(life.all / alone, 1.1) if crowd else ("", "")),
            ]
        parts = (life.executables, life.daemon, life.others, life.all)
        rows.append(
            (who, str(crowd), *(f"{max(x, 0.0):.1f}" for x in parts), life.spread, *ratios)
        )
    whole = f"Of {next(iter(lives.values())).pods} pods on each node."
    return [*report.table(head, rows), "", whole]


def _share_table(shares: dict[str, tuple[Cpu, float, float]], taken_s: float) -> list[str]:
    head = (
        f"of a core, {taken_s / 60:.1f} minutes, {CROWD} pods there", "daemon",
        "what it starts", "executables", "all", "goal",
    )  # fmt: skip
    rows = []
    for what, (took, executables_s, most) in shares.items():
        parts = (took.own, took.all - took.own, executables_s, took.all + executables_s)
        *cells, whole = (100 * x / taken_s for x in parts)
        rows.append((what, *(f"{x:.2f} %" for x in cells), *report.goal(whole, most, unit=" %")))
    return report.table(head, rows)


if __name__ == "__main__":
    report.write(TITLE, "life", measure)
