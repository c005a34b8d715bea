"""What Python and its libraries alone take: seconds, and memory that cannot be dropped."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence

from benchmarks import report, shipped

OURS = ("reconciler", "schemas", "cni", "benchmarks", "__main__")
BEGIN = "import gc, sys; gc.disable()"
AS_DAEMON = """
import schemas
schemas.checks = False
import reconciler.targets
from reconciler.daemon.unused import left_out
"""
"""The daemon holds documents without checks, and imports no more of packages than it uses."""

READ = (
    "print(next(x.split()[1] for x in open('/proc/self/smaps_rollup') "
    "if x.startswith('Private_Dirty')))"
)


def program(names: Sequence[str]) -> str:
    """Return a program that imports modules as the daemon does, in the order given."""
    imports = f"for name in {' '.join(names)!r}.split(): __import__(name)"
    if all(name.partition(".")[0] in sys.stdlib_module_names for name in names):
        return f"{BEGIN}\n{imports}\ngc.freeze()"
    return f"{BEGIN}\n{AS_DAEMON}\nwith left_out():\n    {imports}\ngc.freeze()"


def split(modules: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the standard library's modules, those of other packages, and all, of loaded ones."""
    mine = {"profiled", "cProfile", "_lsprof", "profile", "pstats"}
    names = [n for n in modules if n.partition(".")[0] not in {"__main__", "__mp_main__", *mine}]
    standard = [n for n in names if n.partition(".")[0] in sys.stdlib_module_names]
    others = [n for n in names if n.partition(".")[0] not in {*sys.stdlib_module_names, *OURS}]
    return standard, others, names


def private_mib(text: str) -> float:
    """Return the private dirty memory of a process that has run a program."""
    argv = [*shipped.python(), "-c", f"{text}\n{READ}"]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout) / 1024


def seconds(programs: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Time programs, in random order; the first time of each does not count."""
    chance = random.Random(rounds)
    took: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name in chance.sample(list(programs), len(programs)):
            began = time.perf_counter()
            subprocess.run([*shipped.python(), "-c", programs[name]], check=True)
            if number:
                took[name].append(time.perf_counter() - began)
    return took


def packages(text: str) -> Counter[str]:
    """Return the microseconds that importing takes, by package (``-X importtime``)."""
    argv = [*shipped.python(), "-X", "importtime", "-c", text]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
    found: Counter[str] = Counter()
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", told, re.MULTILINE):
        package = name.partition(".")[0]
        found["the standard library" if package in sys.stdlib_module_names else package] += int(
            own
        )
    return found


def spell(found: Counter[str], most: int = 4) -> str:
    """Write the largest shares."""
    whole = sum(found.values())
    return ", ".join(f"{name} {taken / whole:.0%}" for name, taken in found.most_common(most))


def memory_rows(programs: dict[str, str]) -> list[tuple[str, str]]:
    """Return the memory after each program, in MiB: medians of five processes."""
    return [
        (name, f"{report.p([private_mib(text) for _ in range(5)], 50):.1f}")
        for name, text in programs.items()
    ]
