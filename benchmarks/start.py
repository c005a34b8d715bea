"""What a start takes: of the executable, and of the reconciler until a pod is served."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import nodes, report, shipped
from lab import lifecycle, netns
from lab.lifecycle import EXECUTABLE, Lab

TITLE = "Starts"

STARTS = report.number("START_EXECUTABLES", 200)
FRESH = report.number("START_FRESH", 20)
RESTARTS = report.number("START_RESTARTS", 40)
REST_S = 0.5
"""Seconds between a pod that is served and the next restart."""

LOOPBACK, STATIC, PYTHON = "loopback plugin", "node-network, static", "node-network, Python"
IMPORTS = "import pydantic, yaml, pyroute2, boto3"
DOCUMENT = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
"""All as it is by default."""

Pairs = list[tuple[float, float]]
"""Seconds of a start, and of the imports beside it."""


def measure() -> list[str]:
    """Return the section's lines."""
    executables = _executables()
    _import()  # the first one reads packages from the disk
    return [
        *_executables_table(executables),
        "",
        *_first_pod_table(
            {
                "fresh node, nothing assigned yet": (_fresh(), 1.6),
                f"restart with {nodes.MANY} pods": (_restarts(), 1.0),
            }
        ),
        "",
        "The imports are by the same Python, right before or after each start. What is around a "
        "start, such as a lab of its own or pods that come to rest, takes seconds each time.",
    ]


def _executables() -> dict[str, list[float]]:
    """Time executables that are asked for their version."""
    programs = {
        LOOPBACK: [str(nodes.PLUGINS / "loopback")],
        STATIC: [str(EXECUTABLE)],
        PYTHON: [sys.executable, "-I", "-m", "cni"],
    }
    question = json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "any"})
    environ = {"CNI_COMMAND": "VERSION"}
    times: dict[str, list[float]] = {name: [] for name in programs}
    chance = random.Random(STARTS)
    for _ in range(STARTS):
        for name in chance.sample(list(programs), len(programs)):
            began = time.perf_counter()
            subprocess.run(
                programs[name],
                input=question,
                env=environ,
                text=True,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            times[name].append(1000 * (time.perf_counter() - began))
    return times


def _import() -> None:
    subprocess.run([*shipped.python(), "-c", IMPORTS], check=True)


def _fresh() -> Pairs:
    """Start on nodes that never had a reconciler: two of each lab."""
    found: Pairs = []
    chance = random.Random(FRESH)
    for number in range(0, FRESH, 2):
        report.tell(f"fresh nodes, {number} of {FRESH}")
        nodes.clear(nodes.LAB)
        with tempfile.TemporaryDirectory(prefix="node-network-bench-") as directory:
            config = Path(directory) / "node-network.yaml"
            config.write_text(DOCUMENT)
            lab = lifecycle.up(nodes.LAB)
            try:
                for node in chance.sample(("node1", "node2"), 2):
                    with ExitStack() as stack:
                        stack.enter_context(nodes.tmpfs(lab.names.node_state(node)))
                        start = partial(_first_pod, lab, node, config, stack, "f")
                        found.append(_both(chance, start))
            finally:
                lifecycle.down(nodes.LAB)
    return found


def _restarts() -> Pairs:
    """Start anew on a node with many pods."""
    found: Pairs = []
    chance = random.Random(RESTARTS)
    with nodes.node() as (lab, pid):
        nodes.crowd(lab, "s", partial(nodes.call_ours, lab), range(nodes.MANY))
        nodes.settle(lab)
        config = Path(nodes.status(lab)["document"]["path"])
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        for number in range(RESTARTS):
            if number % 10 == 0:
                report.tell(f"restarts, {number} of {RESTARTS}")
            with ExitStack() as stack:
                start = partial(_first_pod, lab, "node1", config, stack, f"s{number}x")
                found.append(_both(chance, start))
                nodes.settle(lab)
                time.sleep(REST_S)
    return found


def _both(chance: random.Random, start: Callable[[], None]) -> tuple[float, float]:
    """Time a start and imports, in random order."""
    seconds: dict[Callable[[], None], float] = {}
    for act in chance.sample((start, _import), 2):
        began = time.perf_counter()
        act()
        seconds[act] = time.perf_counter() - began
    return seconds[start], seconds[_import]


def _first_pod(lab: Lab, node: str, config: Path, stack: ExitStack, name: str) -> None:
    """Start a reconciler, which ends with the stack, and let a pod come as soon as it listens."""
    where = lab.names.namespace(f"pod-{node}{name}")
    netns.make(where)
    stack.callback(netns.remove, where)
    stack.enter_context(nodes.reconciler(lab, node, config, shipped.command()))
    nodes.await_listener(lab, node)
    nodes.call_ours(lab, "ADD", name, where, node=node)
    stack.callback(nodes.call_ours, lab, "DEL", name, where, node=node)


# -- the tables ---------------------------------------------------------------------------


def _executables_table(times: dict[str, list[float]]) -> list[str]:
    head = (f"start of an executable, of {STARTS}", "ms, p50 / p99", f": {LOOPBACK}", "goal")
    rows = []
    for name, values in times.items():
        ratio = report.p(values, 50) / report.p(times[LOOPBACK], 50)
        cells = report.goal(ratio, 1.55) if name == STATIC else (f"{ratio:.2f}", "")
        rows.append((name, report.spell(values), *cells))
    return report.table(head, rows)


def _first_pod_table(starts: dict[str, tuple[Pairs, float]]) -> list[str]:
    head = (
        "exec of the reconciler to its first ADD answered; s, p50 / p99",
        "of",
        "",
        f"`{IMPORTS}`",
        "ratio",
        "goal",
    )
    rows = []
    for what, (pairs, most) in starts.items():
        took, beside = ([pair[i] for pair in pairs] for i in (0, 1))
        ratio = report.p(took, 50) / report.p(beside, 50)
        spelt = (report.spell(took, 2), report.spell(beside, 2))
        rows.append((what, str(len(pairs)), *spelt, *report.goal(ratio, most)))
    return report.table(head, rows)


if __name__ == "__main__":
    report.write(TITLE, "start", measure)
