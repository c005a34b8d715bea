"""Each goal with its figures, its floor, what lies between, and what would have to change."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from benchmarks import goals, report
from benchmarks.floors import executables, lives
from benchmarks.floors.executables import IN_C, IN_PYTHON
from benchmarks.floors.lives import KERNEL, OURS, PEER, Lives
from benchmarks.goals import Goal
from benchmarks.start import IMPORTS

PERIOD_MS = 5000
RESYNC_MS = 60_000
"""Between audits, by default."""

LIBRARIES, MODULES, BARE = "its libraries alone", "all its modules", "an interpreter"
CALLER, CHECKER = "import boto3", "import pydantic, yaml"
"""What the process that calls EC2 needs, and the one that checks documents."""

PROGRAMS = (BARE, LIBRARIES, MODULES, CALLER, CHECKER)
"""Whose memory and seconds are known."""

ROWS = (
    ("ADD, end to end, : ptp", "Pods", "; ADD, ", "ours : ptp"),
    ("ADD, p99 : p50", "Pods", "; ADD, ", "p99 : p50"),
    ("DEL, end to end, : ptp", "Pods", "; DEL, ", "ours : ptp"),
    ("ADD and DEL in sequence, : ptp", "Pods", "in sequence", ""),
    ("100 at once, : ptp", "Pods", "at once", ": ptp"),
    ("100 at once, p50 : last", "Pods", "at once", "p50 : last"),
    ("the executable's start, : loopback", "Starts", "executable", ""),
    ("fresh node, : imports", "Starts", "fresh node", ""),
    ("restart, : imports", "Starts", "restart", ""),
    ("the daemon's CPU of a life, : ptp", "CPU of", "", "daemon : "),
    ("all CPU of a life, : ptp", "CPU of", "", "all : ptp"),
    ("all CPU of a life, many : none", "CPU of", "", "all : all with none"),
    ("at rest", "CPU of", "nothing happens", ""),
    ("one pod every 5 s", "CPU of", "is replaced", ""),
    ("a look that changes nothing, many : few", "A pass", "", ""),
    ("memory of the daemon, MiB", "Memory", "came and went", ""),
    ("memory of all processes, MiB", "Memory", "worst", ""),
    ("packets to pods, : bare", "Forwarding", "open connection, VPC to pod", "ours : bare"),
    ("packets from pods, : bare", "Forwarding", "open connection, pod to", "ours : bare"),
    ("packets, stock : ours", "Forwarding", "", "stock : ours"),
)
"""A goal's name; and which goals of the results it stands for: words of the section, of the row,
of the column."""


@dataclass
class Measured:
    """What was measured for the floors.

    Attributes:
        dumps: ms of a raw look, by pods; the larger node first.
        idle: per cent of a core at rest, by thread.
        memory: private dirty MiB of the daemon, by when.
        mib: the same of a process that has imported something.
        seconds: of such a process, whole.
        between, threads, packages: the largest parts, spelt.
        packets: our cost and the floor's, to bare, by way.
    """

    lives: Lives
    daemon_ms: float
    bursts: dict[str, list[float]]
    dumps: dict[int, float]
    idle: dict[str, float]
    memory: dict[str, float]
    mib: dict[str, float]
    seconds: dict[str, float]
    between: str
    threads: str
    packages: str
    packets: dict[str, tuple[float, float]] = field(default_factory=dict)


Floor = tuple[str, str, str]
"""The floor, what lies between, what would have to change."""


def table(found: Measured) -> list[str]:
    """Return all goals."""
    known = list(goals.read(report.body(report.RESULTS)))
    floors = _floors(found)
    head = (
        "goal",
        "figures, and whether held",
        "floor",
        "what lies between",
        "what would change it",
    )
    rows = [(row[0], _figures(known, *row[1:]), *floors[row[0]]) for row in ROWS]
    return [
        "Figures are those of the sections of this file; floors are of this section's own run.",
        "",
        *report.table(head, rows),
    ]


def _figures(known: list[Goal], section: str, what: str, column: str) -> str:
    found = [
        f"{goal.figure} {goal.verdict.partition(': ')[2]}"
        for goal in known
        if goal.section.startswith(section) and what in goal.what and column in goal.what
    ]
    bounds = dict.fromkeys(
        goal.verdict.partition(":")[0]
        for goal in known
        if goal.section.startswith(section) and what in goal.what and column in goal.what
    )
    return f"{'; '.join(bounds)}: {', '.join(found)}" if found else "not measured yet"


def _floors(found: Measured) -> dict[str, Floor]:
    return {
        **_latencies(found),
        **_bursts(found),
        **_cpu(found),
        **_python(found),
        **_packets(found),
    }


def _latencies(found: Measured) -> dict[str, Floor]:
    taken, peer = found.lives, found.lives[PEER]
    ours, kernel = taken[OURS], taken[KERNEL]
    c, python = (lives.with_program(taken, name) for name in (IN_C, IN_PYTHON))
    adds, deletes = (
        [
            lives.middle(getattr(of, verb)) / lives.middle(getattr(peer, verb))
            for of in (c, python, ours)
        ]
        for verb in ("add", "delete")
    )
    start, empty, in_c, loopback = (
        lives.middle(taken[name].add)
        for name in (executables.OURS, IN_PYTHON, IN_C, executables.LOOPBACK)
    )
    rest = lives.middle(ours.add) - lives.middle(kernel.add) - start
    add = (
        f"{adds[0]:.2f} with C, {adds[1]:.2f} with our interpreter ({adds[2]:.2f} here)",
        f"{start - empty:.1f} ms the executable's own, {rest:.1f} ms from its question to its "
        f"answer beyond the kernel's {lives.middle(kernel.add):.1f}; by function: {found.between}",
        "fewer functions in the pods' path; the executable in C",
    )
    return {
        "ADD, end to end, : ptp": add,
        "ADD, p99 : p50": (
            f"{lives.tail(c.add):.1f} with C; ptp {lives.tail(peer.add):.1f} "
            f"({lives.tail(ours.add):.1f} here)",
            "what else the machine does; the daemon's looks beside pods",
            "no look at the whole node while a pod waits",
        ),
        "DEL, end to end, : ptp": (
            f"{deletes[0]:.2f} with C, {deletes[1]:.2f} with our interpreter "
            f"({deletes[2]:.2f} here)",
            f"{lives.middle(ours.delete) - start:.1f} ms beyond a start of the executable",
            "the executable in C",
        ),
        "ADD and DEL in sequence, : ptp": add,
        "the executable's start, : loopback": (
            f"{empty / loopback:.2f} an empty program in our interpreter, "
            f"{in_c / loopback:.2f} one in C ({start / loopback:.2f} here)",
            f"{start - empty:.1f} ms of ours; {empty - in_c:.1f} the interpreter's",
            "the executable in C",
        ),
    }


def _bursts(found: Measured) -> dict[str, Floor]:
    (kernel, early), (ours, ours_early), (peer, peer_early) = (
        found.bursts[name] for name in (KERNEL, OURS, PEER)
    )
    return {
        "100 at once, : ptp": (
            f"{kernel / peer:.2f} with C ({ours / peer:.2f} here)",
            f"executables and the daemon share the processors; threads: {found.threads}",
            "fewer functions in the pods' path; the executable in C",
        ),
        "100 at once, p50 : last": (
            f"{early:.2f} with C; ptp {peer_early:.2f} ({ours_early:.2f} here)",
            "executables of later pods take the processors from answers to earlier ones",
            "more processors, or a lighter executable",
        ),
    }


def _cpu(found: Measured) -> dict[str, Floor]:
    taken = found.lives
    c, python = (lives.with_program(taken, name) for name in (IN_C, IN_PYTHON))
    peer, ours, kernel, least, ready = (
        statistics.fmean(of.cpu) for of in (taken[PEER], taken[OURS], taken[KERNEL], c, python)
    )
    life, share = ours + found.daemon_ms, 100 / PERIOD_MS
    daemon = f"threads: {found.threads}; functions: {found.between}"
    (many, much), (few, little) = found.dumps.items()
    idle = sum(found.idle.values())
    return {
        "the daemon's CPU of a life, : ptp": (
            f"{kernel / peer:.2f} the kernel's part ({found.daemon_ms / peer:.2f} here: "
            f"{found.daemon_ms:.1f} ms)",
            daemon,
            "less Python for a pod",
        ),
        "all CPU of a life, : ptp": (
            f"{least / peer:.2f} with C, {ready / peer:.2f} with our interpreter "
            f"({life / peer:.2f} here: {life:.1f} ms)",
            f"{ours:.1f} ms executables; {daemon}",
            "less Python for a pod; the executable in C",
        ),
        "all CPU of a life, many : none": (
            "1.00: what the kernel is asked for does not grow",
            "looks at the whole node",
            "fewer of them",
        ),
        "at rest": (
            f"{100 * much / RESYNC_MS:.3f} % one raw look in a minute ({idle:.2f} % here)",
            ", ".join(f"{name} {share:.3f} %" for name, share in found.idle.items()),
            "fewer looks, fewer wakes",
        ),
        "one pod every 5 s": (
            f"{share * least:.2f} % with C, {share * ready:.2f} % with our interpreter "
            f"({share * life:.2f} % by lives here)",
            daemon,
            "less Python for a pod",
        ),
        "a look that changes nothing, many : few": (
            f"{much / little:.1f} the kernel's own dumps, {many} : {few} pods "
            f"({much:.1f} : {little:.1f} ms)",
            "dumps told apart and compared",
            "looks at a share of the node",
        ),
    }


def _python(found: Measured) -> dict[str, Floor]:
    libraries, modules = (found.seconds[n] / found.seconds[IMPORTS] for n in (LIBRARIES, MODULES))
    alone, loaded, caller, checker = (
        found.mib[name] for name in (LIBRARIES, MODULES, CALLER, CHECKER)
    )
    most = max(found.memory.values())
    daemon = (
        f"{alone:.1f} its libraries alone, {loaded:.1f} all its modules ({most:.1f} here)",
        f"{loaded - alone:.1f} MiB our modules, {most - loaded:.1f} objects and threads",
        "fewer or smaller modules of ours",
    )
    all_of_them = (
        f"{alone + caller + checker:.1f} libraries alone: {alone:.1f} the daemon's, {caller:.1f} "
        f"`{CALLER}`, {checker:.1f} `{CHECKER}`",
        f"in the daemon {most - alone:.1f} MiB more; calls and documents in the others",
        "the process that calls EC2 and the one that checks documents one after the other",
    )
    start = f"{modules:.2f} all modules of the daemon, {libraries:.2f} its libraries alone"
    return {
        "fresh node, : imports": (
            start,
            f"imports: {found.packages}; and EC2's first answer by a second process",
            "answers from metadata alone; a smaller client of EC2",
        ),
        "restart, : imports": (
            start,
            f"imports: {found.packages}; one full pass",
            "fewer modules",
        ),
        "memory of the daemon, MiB": daemon,
        "memory of all processes, MiB": all_of_them,
    }


def _packets(found: Measured) -> dict[str, Floor]:
    floors = [
        (
            f"{least:.2f} with conntrack, NAT's hooks and one rule alone ({ours:.2f} here)",
            f"{ours - least:.2f}: the guard, marks and the rest of routing",
            "no conntrack for pods, or no rules; flowtables where a kernel has them",
        )
        for ours, least in found.packets.values()
    ]
    names = ("packets to pods, : bare", "packets from pods, : bare")
    beside = (
        "stock's packets pass conntrack, NAT and rules as well: what is theirs alone is the walk "
        "through iptables' chains",
        floors[1][1],
        floors[1][2],
    )
    return {**dict(zip(names, floors, strict=True)), "packets, stock : ours": beside}
