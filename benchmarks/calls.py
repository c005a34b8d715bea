"""EC2 calls by action: what a pool costs, counted by the lab's EC2 itself."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lab import lifecycle, pod
from lab.lifecycle import Lab
from reconciler.client import ask

TYPE = "m5.4xlarge"
LIMIT_S = 90.0
HEAD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
Row = tuple[str, Counter[str], str]


def measure() -> list[Row]:
    """Return (what, calls by action, how long it took or what else is to be said)."""
    return [
        _fill("single addresses", ""),
        _fill("prefixes", "eni: {allocate: prefixes}\n"),
        *_rest(),
        _burst(100),
    ]


def _fill(name: str, more: str) -> Row:
    pool = "warmPool: {addresses: {warm: 48, surplus: 0}}\n"
    with _node(pool + more, settle=48) as (lab, took):
        return f"from nothing to 48 allocatable, {name}", _calls(lab), f"{took:.1f} s"


def _rest() -> Iterator[Row]:
    """What a node costs that has all it needs."""
    pool = "warmPool: {addresses: {warm: 4}, cooldown: 1s}\nreconcile: {ec2Resync: 10s}\n"
    with _node(pool) as (lab, _):
        pod.add(lab, "node1", "a")
        _until(lambda: _pool(lab).get("assigned") == 1)
        time.sleep(12)  # whatever the first pod led to is over
        lab.ask("calls", reset=True)
        pod.delete(lab, "node1", "a")
        pod.add(lab, "node1", "b")
        _until(lambda: _pool(lab).get("cooling") == 0)
        replaced = {k: v for k, v in _calls(lab).items() if not k.startswith("Describe")}
        yield "one pod replaced", Counter(replaced), "looks left out"
        lab.ask("calls", reset=True)
        time.sleep(31)
        look = round(sum(_calls(lab).values()) / 3)
        hour = Counter({"Describe*": look * 12})
        yield (
            "an hour idle",
            hour,
            f"12 looks, one every 5 minutes; {look} calls each, counted over 3",
        )


def _burst(count: int) -> Row:
    with _node("warmPool: {addresses: {warm: 4}}\n", settle=0) as (lab, _):
        began = time.monotonic()
        with ThreadPoolExecutor(count) as workers:
            add = partial(pod.add, lab, "node1", budget_s=80)
            jobs = [workers.submit(add, f"p{i}") for i in range(count)]
            made = {job.result().address for job in jobs}
        took = time.monotonic() - began
        return f"{len(made)} pods at once on a cold node", _calls(lab), f"{took:.1f} s"


def table(rows: list[Row]) -> list[str]:
    """Return the rows in Markdown."""
    lines = [f"| EC2 calls of one {TYPE} | mutating | by action | |", "|---|---|---|---|"]
    for what, calls, remark in rows:
        mutating = sum(n for name, n in calls.items() if not name.startswith("Describe"))
        spelt = ", ".join(f"{n} {name}" for name, n in sorted(calls.items())) or "none"
        lines.append(f"| {what} | {mutating} | {spelt} | {remark} |")
    return lines


@contextmanager
def _node(document: str, *, settle: int = 4) -> Iterator[tuple[Lab, float]]:
    """A lab with a reconciler on one large node; and how long it took to settle, in seconds.

    Args:
        document: without its first two lines.
        settle: allocatable addresses to wait for; 0 waits for nothing.
    """
    name = "calls"
    lifecycle.down(name)
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as directory:
        config = Path(directory) / "node-network.yaml"
        config.write_text(HEAD + document)
        try:
            lab = lifecycle.up(name, types={"node1": TYPE})
            lab.ask("calls", reset=True)
            argv = [sys.executable, "-m", "reconciler", "run", "-f", str(config)]
            with (lab.names.node_state("node1") / "log").open("w") as log:
                began = time.monotonic()
                process = lab.start("node1", argv, stderr=log)
                _until(lambda: (lab.names.node_state("node1") / "node-network.sock").exists())
                if settle:
                    _until(lambda: _is_settled(lab, low=settle))
                yield lab, time.monotonic() - began
                process.terminate()
                process.wait()
        finally:
            lifecycle.down(name)


def _is_settled(lab: Lab, low: int) -> bool:
    status = ask(lab.names.node_state("node1") / "node-network.sock", {"do": "status"})["status"]
    attached = all(e["status"] == "attached" for e in status["enis"])
    allocatable = status["pool"].get("allocatable", 0)
    return bool(status["settled"] and attached and allocatable >= low)


def _pool(lab: Lab) -> dict[str, int]:
    status = ask(lab.names.node_state("node1") / "node-network.sock", {"do": "status"})["status"]
    pool: dict[str, int] = status["pool"]
    return pool


def _calls(lab: Lab) -> Counter[str]:
    return Counter(lab.ask("calls")["calls"])


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("the node did not get there")
        time.sleep(0.1)
