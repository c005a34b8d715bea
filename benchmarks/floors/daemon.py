"""Where the daemon's CPU goes: by thread, by mode, by function, by system call."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import processes, report, shipped

PROGRAM = Path(__file__).with_name("profiled.py")
MAIN = "MainThread"
LIMIT_S = 10.0
NANO = 1e-9
MODULE = "reconciler"

Taken = dict[str, float]
"""CPU seconds, or a share, by name."""

Functions = dict[str, tuple[float, float, int]]
"""CPU seconds of a function by itself, with all it calls, and calls, by thread and name."""


def command(place: Path, how: str) -> list[str]:
    """Return the command that runs the reconciler as it ships, in ``profiled``'s way."""
    return [*shipped.python(), "-P", str(PROGRAM), str(place), how]


def most(taken: Taken) -> list[tuple[str, float]]:
    """Return all, the largest first."""
    return sorted(taken.items(), key=lambda item: -item[1])


# -- threads ------------------------------------------------------------------------------


def threads(pid: int) -> Taken:
    """Return the CPU seconds of each thread so far, by its name; those of one name together."""
    taken: Taken = defaultdict(float)
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(*processes.GONE):
            name = MAIN if task.name == str(pid) else (task / "comm").read_text().strip()
            taken[name] += int((task / "schedstat").read_text().split()[0]) * NANO
    return taken


def modes(pid: int) -> tuple[float, float]:
    """Return the CPU seconds in user mode and in the kernel; of ended children, neither."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = (int(fields[i]) * processes.TICK_S for i in (11, 12))
    return user, system


def thread_table(took: Taken, count: int, per: str) -> list[str]:
    """Return what each thread takes, in ms."""
    whole = sum(took.values())
    rows = [
        (f"`{name}`", f"{1000 * taken_s / count:.2f}", f"{taken_s / whole:.0%}")
        for name, taken_s in most(took)
        if taken_s > 0.002 * whole
    ]
    return report.table((f"thread of the daemon, ms of CPU {per}", "", "share"), rows)


# -- functions ----------------------------------------------------------------------------


def tell(place: Path) -> dict[str, object]:
    """Have a reconciler write what ``profiled`` knows, and read it."""
    place.unlink(missing_ok=True)
    place.with_suffix(".ask").write_text("now")
    deadline = time.monotonic() + LIMIT_S
    while not place.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the reconciler wrote nothing to {place}")
        time.sleep(0.01)
    told: dict[str, object] = json.loads(place.read_text())
    return told


def functions(before: dict[str, object], after: dict[str, object]) -> Functions:
    """Return what functions have taken between two looks."""
    first, last = before["functions"], after["functions"]
    assert isinstance(first, dict)
    assert isinstance(last, dict)
    nothing = (0.0, 0.0, 0)
    found = {}
    for name, numbers in last.items():
        own, whole, calls = (a - b for a, b in zip(numbers, first.get(name, nothing), strict=True))
        if calls:
            found[name] = own, whole, int(calls)
    return found


def largest(found: Functions, count: int) -> list[str]:
    """Name those that take most by themselves, with their share."""
    whole = sum(own for own, _, _ in found.values())
    by_name: Taken = defaultdict(float)
    for name, (own, _, _) in found.items():
        by_name[_spell(name.partition(" ")[2])] += own
    return [f"`{name}` {own / whole:.0%}" for name, own in most(by_name)[:count]]


def function_tables(found: Functions, count: int) -> list[str]:
    """Return functions of the loop that serves pods, and those that take most by themselves."""
    whole = sum(own for own, _, _ in found.values())
    loop = {
        name.partition(" ")[2]: numbers
        for name, numbers in found.items()
        if name.startswith(MAIN) and f"/{MODULE}/" in name and "<" not in name
    }
    outer = sorted(loop.items(), key=lambda item: -item[1][1])[: 2 * count]
    modules: Taken = defaultdict(float)
    for name, (own, _, _) in found.items():
        path, _, _ = name.partition(" ")[2].rpartition(":")
        modules[_module(path) if path else "built-in functions"] += own
    return [
        *report.table(
            ("in the loop that serves pods, with all they call", "calls", "share"),
            [
                (f"`{_spell(name)}`", f"{calls}", f"{taken_s / whole:.0%}")
                for name, (_, taken_s, calls) in outer
            ],
        ),
        "",
        f"Functions by themselves: {', '.join(largest(found, count))}.",
        "",
        "Modules by themselves: "
        + ", ".join(f"{name} {own / whole:.0%}" for name, own in most(modules)[: 2 * count])
        + ".",
    ]


def _spell(name: str) -> str:
    """Shorten a function's name: its module below its package, and its own."""
    path, _, function = name.rpartition(":")
    if not path:
        return re.sub(r" at 0x[0-9a-f]+", "", name).strip("<>").replace("built-in method ", "")
    return f"{_module(path)}.{function}"


def _module(path: str) -> str:
    short = re.sub(r"^.*(?:site-packages/|lib/python3[^/]*/)", "", path).removesuffix(".py")
    return short.replace("/", ".").removeprefix(f"{MODULE}.")


# -- system calls, and where the processor is ------------------------------------------------


@contextmanager
def counted_calls(pid: int) -> Iterator[Counter[str]]:
    """Count system calls of a process meanwhile; nothing without ``strace``."""
    found: Counter[str] = Counter()
    if not shutil.which("strace"):
        yield found
        return
    with tempfile.NamedTemporaryFile("r", prefix="node-network-bench-") as file:
        argv = ["strace", "-f", "-c", "-qq", "-o", file.name, "-p", str(pid)]
        with _beside(argv):
            yield found
        for line in file.read().splitlines():
            words = line.split()
            if len(words) >= 5 and words[3].isdigit() and words[-1] != "total":
                found[words[-1]] = int(words[3])


@contextmanager
def sampled(pid: int) -> Iterator[Taken]:
    """Sample where a process's CPU goes meanwhile, by object; nothing without ``perf``."""
    found: Taken = defaultdict(float)
    if not shutil.which("perf"):
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as place:
        data = f"{place}/data"
        with _beside(["perf", "record", "-q", "-e", "cpu-clock", "-o", data, "-p", str(pid)]):
            yield found
        argv = ["perf", "report", "-i", data, "--stdio", "--sort", "dso", "-q"]
        told = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        for share, name in re.findall(r"^\s*([\d.]+)%\s+(\S+)", told, re.MULTILINE):
            found[name] += float(share)


@contextmanager
def _beside(argv: Sequence[str]) -> Iterator[None]:
    """Have a tool attached meanwhile; it is ended by SIGINT, as by a person."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, stdout=quiet, stderr=quiet) as tool:
        time.sleep(1.0)  # neither says when it has attached
        try:
            yield
        finally:
            tool.send_signal(signal.SIGINT)


def spell_calls(calls: Counter[str], count: float, shown: int = 10) -> str:
    """Write the most frequent system calls, each so many times of ``count``."""
    if not calls:
        return "`strace` is not there."
    names = ", ".join(f"{n / count:.1f} {name}" for name, n in calls.most_common(shown))
    return f"{sum(calls.values()) / count:.0f} (`strace -c`): {names}."


def spell_objects(shares: Taken, shown: int = 5) -> str:
    """Write where samples were."""
    if not shares:
        return "`perf` is not there."
    names = ", ".join(f"{share:.0f} % {name}" for name, share in most(shares)[:shown])
    return f"{names} (`perf record -e cpu-clock`)."


def since(before: Taken, after: Taken) -> Taken:
    """Return what was taken between two looks at threads."""
    return {name: taken_s - before.get(name, 0.0) for name, taken_s in after.items()}
