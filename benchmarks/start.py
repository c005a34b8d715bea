"""What a start takes: of the executable, and of the reconciler until a pod is served."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

from benchmarks import nodes, report
from lab.lifecycle import EXECUTABLE

TITLE = "Starts"
STARTS = report.number("START_EXECUTABLES", 200)
LOOPBACK, STATIC, PYTHON = "loopback plugin", "node-network, static", "node-network, Python"


def measure() -> list[str]:
    """Return the section's lines."""
    return _executables_table(_executables())


def _executables() -> dict[str, list[float]]:
    """Time executables that are asked for their version."""
    programs = {
        LOOPBACK: [str(nodes.PLUGINS / "loopback")],
        STATIC: [str(EXECUTABLE)],
        PYTHON: [sys.executable, "-I", "-m", "cni"],
    }
    question = json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "any"})
    times: dict[str, list[float]] = {name: [] for name in programs}
    chance = random.Random(STARTS)
    for _ in range(STARTS):
        for name in chance.sample(list(programs), len(programs)):
            began = time.perf_counter()
            environ = {"CNI_COMMAND": "VERSION"}
            subprocess.run(
                programs[name], input=question, env=environ, text=True, check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            times[name].append(1000 * (time.perf_counter() - began))
    return times


def _executables_table(times: dict[str, list[float]]) -> list[str]:
    head = (f"start of an executable, of {STARTS}", "ms, p50 / p99", f": {LOOPBACK}", "goal")
    rows = []
    for name, values in times.items():
        ratio = report.p(values, 50) / report.p(times[LOOPBACK], 50)
        rows.append(
            (name, report.spell(values), f"{ratio:.2f}", "≤ 1.55" if name == STATIC else "")
        )
    return report.table(head, rows)


if __name__ == "__main__":
    report.write(TITLE, "start", measure)
