"""A pod's life beside what the kernel is asked for, and beside executables that do nothing."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import nodes, processes, report
from benchmarks.floors import executables
from benchmarks.floors.executables import IN_C, IN_PYTHON
from benchmarks.floors.replay import Pod
from benchmarks.nodes import AT_ONCE, Call
from lab import netns
from lab.lifecycle import Lab

ROUNDS = report.number("FLOORS_ROUNDS", 200)
BURSTS = report.number("FLOORS_BURSTS", 3)
OURS, PEER, KERNEL = "node-network", "ptp + host-local", "what the kernel is asked for"
STEMS = {OURS: "fo", PEER: "fp"}


@dataclass
class Taken:
    """What was measured of one side, pod by pod: ms, and ms of CPU; a start is an ADD alone."""

    add: list[float] = field(default_factory=list)
    delete: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


Lives = dict[str, Taken]


def measure(lab: Lab, calls: dict[str, Call], pod: Pod, programs: dict[str, Path]) -> Lives:
    """Let pods come and go on all sides in random order, and programs start and end."""
    lives: Lives = {name: Taken() for name in (*calls, KERNEL, *programs)}
    acts: dict[str, Callable[[int], None]] = {
        KERNEL: lambda _: _replay(pod, lives[KERNEL]),
        **{name: partial(_live, lab, name, call, lives[name]) for name, call in calls.items()},
        **{name: partial(_start, path, lives[name]) for name, path in programs.items()},
    }
    chance = random.Random(ROUNDS)
    for number in range(ROUNDS):
        if number % 50 == 0:
            report.tell(f"lives, {number} of {ROUNDS}")
        for name in chance.sample(list(acts), len(acts)):
            acts[name](number)
    return lives


def _live(lab: Lab, side: str, call: Call, taken: Taken, number: int) -> None:
    where = lab.names.namespace(f"pod-{STEMS[side]}{number}")
    netns.make(where)
    cpu_s = 0.0
    for verb, times in (("ADD", taken.add), ("DEL", taken.delete)):
        began = time.perf_counter()
        cpu_s += processes.run_s(partial(call, verb, f"f{number}", where))
        times.append(1000 * (time.perf_counter() - began))
    taken.cpu.append(1000 * cpu_s)
    nodes.await_end(where)
    netns.remove(where)


def _replay(pod: Pod, taken: Taken) -> None:
    came, goes = pod.come(), pod.go()
    taken.add.append(1000 * came[0])
    taken.delete.append(1000 * goes[0])
    taken.cpu.append(1000 * (came[1] + goes[1]))


def _start(program: Path, taken: Taken, _: int) -> None:
    began = time.perf_counter()
    taken.cpu.append(1000 * processes.run_s(partial(executables.run, program)))
    taken.add.append(1000 * (time.perf_counter() - began))


def with_program(lives: Lives, program: str) -> Taken:
    """Return the life of a pod whose plugin is a program that does nothing, and the kernel."""
    kernel, start = lives[KERNEL], lives[program]
    adds = zip(kernel.add, start.add, strict=True)
    cpu = zip(kernel.cpu, start.cpu, strict=True)
    return Taken(
        [a + b for a, b in adds],
        start.add,  # a DEL is answered once it is written down
        [a + 2 * b for a, b in cpu],
    )


def table(lives: Lives, daemon_ms: float) -> list[str]:
    """Return sides and floors."""
    peer = lives[PEER]
    sides = {
        OURS: (lives[OURS], daemon_ms),
        PEER: (peer, 0.0),
        f"{KERNEL}, and {IN_PYTHON}": (with_program(lives, IN_PYTHON), 0.0),
        f"{KERNEL}, and {IN_C}": (with_program(lives, IN_C), 0.0),
        KERNEL: (lives[KERNEL], 0.0),
    }
    head = (
        f"{nodes.MANY} pods there, of {ROUNDS}", "ADD, ms, p50 / p99", f": {PEER}", "p99 : p50",
        "DEL, ms, p50 / p99", f": {PEER}", "CPU of a life, ms", f": {PEER}",
    )  # fmt: skip
    rows = []
    for name, (taken, more) in sides.items():
        cpu = statistics.fmean(taken.cpu) + more
        rows.append((
            name, report.spell(taken.add), f"{middle(taken.add) / middle(peer.add):.2f}",
            f"{tail(taken.add):.1f}", report.spell(taken.delete),
            f"{middle(taken.delete) / middle(peer.delete):.2f}", f"{cpu:.1f}",
            f"{cpu / statistics.fmean(peer.cpu):.2f}",
        ))  # fmt: skip
    return report.table(head, rows)


def middle(values: list[float]) -> float:
    """Return the median."""
    return report.p(values, 50)


def tail(values: list[float]) -> float:
    """Return p99 : p50."""
    return report.p(values, 99) / report.p(values, 50)


# -- many at once ---------------------------------------------------------------------------


def bursts(lab: Lab, calls: dict[str, Call], pod: Pod, program: Path) -> dict[str, list[float]]:
    """Return the median seconds until all of a burst were answered, and p50 : last, by side."""
    found: dict[str, list[list[float]]] = {name: [] for name in (*calls, KERNEL)}
    chance = random.Random(BURSTS)
    for number in range(BURSTS):
        report.tell(f"{AT_ONCE} at once, {number} of {BURSTS}")
        for name in chance.sample(list(found), len(found)):
            if name == KERNEL:
                found[name].append(_kernel_burst(pod, program))
            else:
                nodes.settle(lab)
                stem = f"{STEMS[name]}b{number}x"
                found[name].append(nodes.burst(lab, stem, calls[name]))
    return {
        name: [middle([max(b) for b in each]), middle([middle(b) / max(b) for b in each])]
        for name, each in found.items()
    }


def _kernel_burst(pod: Pod, program: Path) -> list[float]:
    """Start empty programs all at once, and have the kernel make as many pods meanwhile."""
    began = time.perf_counter()

    def start(_: int) -> float:
        executables.run(program)
        return time.perf_counter() - began

    def make() -> list[float]:
        ends, away = [], 0.0
        for _ in range(AT_ONCE):
            pod.come()
            ends.append(time.perf_counter() - began - away)
            away += pod.go()[0]  # no pod of a burst goes
        return ends

    with ThreadPoolExecutor(AT_ONCE + 1) as workers:
        made = workers.submit(make)
        started = sorted(workers.map(start, range(AT_ONCE)))
        return [max(pair) for pair in zip(started, made.result(), strict=True)]


def burst_table(found: dict[str, list[float]]) -> list[str]:
    """Return what a burst takes."""
    head = (f"{AT_ONCE} ADDs at once", "all answered, s, median", f": {PEER}", "p50 : last")
    names = {KERNEL: f"{KERNEL}, and {IN_C}"}
    rows = [
        (names.get(name, name), f"{last:.2f}", f"{last / found[PEER][0]:.2f}", f"{early:.2f}")
        for name, (last, early) in found.items()
    ]
    return report.table(head, rows)
