"""``python -m benchmarks.floors``: what stands beneath each goal, measured beside its figure.

A floor is what is left if nothing else were done: the same messages to the kernel by a program
that does nothing else, an executable that ends at once, the libraries alone, a packet's way with
one thing after the other that decides about it. What lies between is told by profiles.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from benchmarks import forwarding, nodes, processes, report, testbed
from benchmarks.floors import daemon, executables, imports, lives, packets, verdicts
from benchmarks.floors.executables import IN_C
from benchmarks.floors.lives import KERNEL, OURS, PEER
from benchmarks.floors.replay import Pod, dump_ms
from benchmarks.floors.verdicts import BARE, CALLER, CHECKER, LIBRARIES, MODULES
from benchmarks.nodes import AT_ONCE, MANY, ROOM, Call
from benchmarks.start import IMPORTS
from lab import netns
from lab.lifecycle import Lab

TITLE = "Floors"

PROFILED = report.number("FLOORS_PROFILED", 100)
"""Pods under a profile, and half as many under each tool that looks from outside."""

IDLE_S = report.number("FLOORS_IDLE_S", 65)
"""Longer than from one audit to the next."""

IMPORTED = report.number("FLOORS_IMPORTS", 20)
FEW = 50
SMALL_S = 10.0


@dataclass
class Found:
    """What was measured, and the tables of it."""

    verdicts: verdicts.Measured
    lines: list[str]


def measure() -> list[str]:
    """Return the section's lines."""
    with ExitStack() as stack:
        place = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="node-network-bench-"))
        )
        programs = stack.enter_context(executables.empty())
        found = _measure(stack, place, programs)
    costs = packets.measure()
    found.verdicts.packets = {way: _packet(costs, way) for way in packets.WAYS}
    return [
        *verdicts.table(found.verdicts),
        "",
        *found.lines,
        "",
        *packets.table(costs),
        "",
        "One `ip rule` is enough for the kernel to look up ways, and sources, by rules.",
    ]


def _packet(costs: packets.Costs, way: str) -> tuple[float, float]:
    return packets.ratio(costs, packets.OURS, way), packets.ratio(costs, packets.LAST, way)


def _measure(stack: ExitStack, place: Path, programs: dict[str, Path]) -> Found:
    commands = {
        "node1": daemon.command(place / "node1.json", "names"),
        "node2": daemon.command(place / "node2.json", "profile"),
    }
    rooms = {"node1": MANY + AT_ONCE + ROOM, "node2": AT_ONCE + ROOM}
    lab, pids = stack.enter_context(nodes.nodes(rooms, earlier=commands))
    pid = pids["node1"]
    calls: dict[str, Call] = {
        OURS: partial(nodes.call_ours, lab),
        PEER: nodes.peer(lab, "plain", stack),
    }
    memory = {"after its start": processes.private_mib(pid)}
    for side, call in calls.items():
        nodes.crowd(lab, f"{lives.STEMS[side]}c", call, range(MANY))
    nodes.settle(lab)
    memory[f"with {MANY} pods"] = processes.private_mib(pid)
    names = stack.enter_context(forwarding.a_lab(f"{nodes.LAB}k"))
    stack.enter_context(nodes.tmpfs(names.state))
    exclude = [IPv4Network("11.0.0.0/24")]
    beds = {
        size: stack.enter_context(closing(testbed.by_us(names, size, exclude)))
        for size in (MANY, FEW)
    }
    pod = stack.enter_context(closing(Pod(beds[MANY], names)))
    dumps = {size: dump_ms(bed.node) for size, bed in beds.items()}

    threads, modes = daemon.threads(pid), daemon.modes(pid)
    taken = lives.measure(lab, calls, pod, programs)
    threads = daemon.since(threads, daemon.threads(pid))
    user_s, kernel_s = (b - a for a, b in zip(modes, daemon.modes(pid), strict=True))
    daemon_ms = 1000 * sum(threads.values()) / lives.ROUNDS
    bursts = lives.bursts(lab, calls, pod, programs[IN_C])
    nodes.settle(lab)
    memory[f"after {lives.ROUNDS} more"] = processes.private_mib(pid)

    report.tell("profiles")
    outside = max(1, PROFILED // 2)
    with daemon.counted_calls(pid) as system:
        _pods(lab, calls[OURS], "st", outside)
    with daemon.sampled(pid) as objects:
        _pods(lab, calls[OURS], "pe", outside)
    told = place / "node2.json"
    first = daemon.tell(told)
    _pods(lab, partial(nodes.call_ours, lab, node="node2"), "pr", PROFILED)
    last = daemon.tell(told)
    functions = daemon.functions(first, last)
    idle, idle_calls = _rest(lab, pid)

    report.tell("imports")
    modules = last["modules"]
    assert isinstance(modules, list)
    standard, libraries, everything = imports.split(modules)
    texts = {
        BARE: "pass",
        "the standard library that it has": imports.program(standard),
        LIBRARIES: imports.program([*standard, *libraries]),
        MODULES: imports.program(everything),
        CALLER: CALLER,
        CHECKER: CHECKER,
    }
    took = imports.seconds({**texts, IMPORTS: IMPORTS}, IMPORTED)
    mib = {name: imports.private_mib(text) for name, text in texts.items()}
    packages = imports.packages(texts[MODULES])
    counts = {name: executables.instructions(path) for name, path in programs.items()}

    kernel_ms = statistics.fmean(taken[KERNEL].cpu)
    measured = verdicts.Measured(
        lives=taken,
        daemon_ms=daemon_ms,
        bursts=bursts,
        dumps=dumps,
        idle={n: 100 * s / IDLE_S for n, s in daemon.most(idle)[:4]},
        memory=memory,
        mib=mib,
        seconds={name: report.p(each, 50) for name, each in took.items()},
        between=", ".join(daemon.largest(functions, 3)),
        threads=_spell(threads, lives.ROUNDS),
        packages=imports.spell(packages),
    )
    lines = [
        *lives.table(taken, daemon_ms),
        "",
        f"The kernel is asked by {len(pod.adds)} messages for an ADD and {len(pod.deletes)} for a "
        "DEL, those of the product, of which one each is an nftables transaction; and files are "
        f"written with fsync. That is {kernel_ms:.2f} ms of CPU for a life. A DEL's link takes "
        f"{lives.middle(taken[KERNEL].delete):.0f} ms, in which the kernel waits for its readers.",
        "",
        *daemon.thread_table(threads, lives.ROUNDS, f"for a life; {MANY} pods there"),
        "",
        f"{1000 * user_s / lives.ROUNDS:.1f} ms of it in user mode, "
        f"{1000 * kernel_s / lives.ROUNDS:.1f} in the kernel. By object: "
        f"{daemon.spell_objects(objects)} System calls for a life: "
        f"{daemon.spell_calls(system, outside)}",
        "",
        f"By function (`cProfile`, by each thread's clock, {PROFILED} pods one after the other; "
        "it makes small functions look dearer than they are):",
        "",
        *daemon.function_tables(functions, 8),
        "",
        *lives.burst_table(bursts),
        "",
        *_starts(programs, taken, counts),
        "",
        *daemon.thread_table(idle, IDLE_S, f"for a second at rest; {MANY} pods there"),
        "",
        f"System calls of a second at rest: {daemon.spell_calls(idle_calls, SMALL_S)}",
        "",
        *_python(mib, memory, took),
        "",
        f"Of importing all, by package (`-X importtime`): {imports.spell(packages, 6)}.",
    ]
    return Found(measured, lines)


def _pods(lab: Lab, call: Call, stem: str, count: int) -> None:
    """Let pods come and go one after the other."""
    for number in range(count):
        where = lab.names.namespace(f"pod-{stem}{number}")
        netns.make(where)
        call("ADD", f"{stem}{number}", where)
        call("DEL", f"{stem}{number}", where)
        nodes.await_end(where)
        netns.remove(where)


def _rest(lab: Lab, pid: int) -> tuple[daemon.Taken, Counter[str]]:
    """Return what threads take, and what system calls there are, while nothing happens."""
    nodes.settle(lab)
    time.sleep(SMALL_S)
    before = daemon.threads(pid)
    time.sleep(IDLE_S)
    taken = daemon.since(before, daemon.threads(pid))
    with daemon.counted_calls(pid) as calls:
        time.sleep(SMALL_S)
    return taken, calls


def _spell(taken: daemon.Taken, count: int) -> str:
    return ", ".join(f"{n} {1000 * s / count:.1f} ms" for n, s in daemon.most(taken)[:3])


def _starts(
    programs: dict[str, Path], taken: lives.Lives, counts: dict[str, str]
) -> list[str]:  # fmt: skip
    head = ("start of an executable", "ms, p50 / p99", "CPU, ms", "million instructions")
    rows = [
        (name, report.spell(taken[name].add), f"{statistics.fmean(taken[name].cpu):.2f}", count)
        for name, count in counts.items()
        if name in programs
    ]
    return [*report.table(head, rows), "", "Instructions are of user mode (`callgrind`)."]


def _python(
    mib: dict[str, float], memory: dict[str, float], took: dict[str, list[float]]
) -> list[str]:  # fmt: skip
    head = ("Debian's Python", "private dirty, MiB", "s, p50 / p99", f": `{IMPORTS}`")
    beside = report.p(took[IMPORTS], 50)
    rows = []
    for name, seconds in took.items():
        ratio = report.p(seconds, 50) / beside
        known = f"{mib[name]:.1f}" if name in mib else ""
        rows.append((name.join("``") if name.startswith("import ") else name, known,
                     report.spell(seconds, 2), f"{ratio:.2f}"))  # fmt: skip
    rows += [(f"the daemon, {when}", f"{much:.1f}", "", "") for when, much in memory.items()]
    return report.table(head, rows)


if __name__ == "__main__":
    report.write(TITLE, "floors", measure, target="floors")
