"""EC2 calls by action: what a pool costs, counted by the lab's EC2 itself."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import nodes, report, shipped
from lab import lifecycle, pod
from lab.lifecycle import Lab
from reconciler.daemon.client import ask

TITLE = "EC2 calls"

TYPE = "m5.4xlarge"
LIMIT_S = 90.0
BOOTS, PER_ENI = (1, 2, 6), 29
ATTACH_S = 2
"""Seconds of an attachment: EC2 takes one to ten."""

BOOT_S = 35
"""Seconds after which metadata, or a look if that does not, has shown what EC2 answered."""

LOOKS_AN_HOUR = 2
SEQUENCE = report.number("CALLS_SEQUENCE", 1000)
ENOUGH = "warmPool: {addresses: {warm: 4}, cooldown: 1s}\n"
HEAD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
_numbers = itertools.count()
"""Of labs."""


class Row(NamedTuple):
    """What was done, and what it cost.

    Attributes:
        what: was done.
        calls: made, by action.
        reads: how many there may be; None where no goal is set.
        writes: likewise.
        remark: how long it took, or what else is to be said.
    """

    what: str
    calls: Counter[str]
    remark: str = ""
    reads: int | None = None
    writes: int | None = None


def measure() -> list[str]:
    """Return the section's lines."""
    return table(_rows())


def _rows() -> list[Row]:
    # What mostly waits goes on beside what mostly computes, each in a lab of its own.
    with ThreadPoolExecutor(5) as strands:
        boots = strands.submit(lambda: [_boot(enis) for enis in BOOTS])
        rest = strands.submit(lambda: list(_rest()))
        hour = strands.submit(_hour)
        warm = strands.submit(_sequence, SEQUENCE, "warm: 4", settle=4)
        fills = [_fill("single addresses", ""), _fill("prefixes", "eni: {allocate: prefixes}\n")]
        ready = _sequence(SEQUENCE, "minimum: 230, surplus: 0", settle=230)
        idle = (*rest.result(), hour.result())
        return [*fills, *boots.result(), *idle, warm.result(), ready, _burst(100)]


def _fill(name: str, more: str) -> Row:
    pool = "warmPool: {addresses: {warm: 48, surplus: 0}}\n"
    with _node(pool + more, settle=48) as (lab, took):
        return Row(f"from nothing to 48 allocatable, {name}", _calls(lab), f"{took:.1f} s")


def _boot(enis: int) -> Row:
    """A node's first minute, with attachments that take as long as EC2's do."""
    pool = f"warmPool: {{addresses: {{minimum: {enis * PER_ENI}, surplus: 0}}}}\n"
    slow = {"attachDelaySeconds": ATTACH_S}
    with _node(pool, settle=enis * PER_ENI, faults=slow) as (lab, took):
        time.sleep(BOOT_S)
        made = _calls(lab)
    what = f"a boot with {enis} ENIs, {ATTACH_S} s each attachment, and {BOOT_S} s more"
    return Row(what, made, f"{took:.1f} s; the goal is 2 reads for each ENI", reads=2 * enis)


def _rest() -> Iterator[Row]:
    """What a node costs that has all it needs."""
    with _node(ENOUGH) as (lab, _):
        time.sleep(BOOT_S)
        pod.add(lab, "node1", "a")
        _until(lambda: _pool(lab).get("assigned") == 1)
        time.sleep(BOOT_S)  # whatever the first pod led to is over
        lab.ask("calls", reset=True)
        pod.delete(lab, "node1", "a")
        pod.add(lab, "node1", "b")
        _until(lambda: _pool(lab).get("cooling") == 0)
        time.sleep(3)
        what = "a pod's life: DEL, ADD and cooldown, with room in the pool"
        yield Row(what, _calls(lab), reads=0, writes=0)
        lab.ask("calls", reset=True)
        time.sleep(65)
        what = "65 s idle, as the document's defaults are"
        yield Row(what, _calls(lab), "more than one resync")


def _hour() -> Row:
    with _node(ENOUGH + "reconcile: {ec2Resync: 10s}\n") as (lab, _):
        time.sleep(BOOT_S)
        lab.ask("calls", reset=True)
        time.sleep(31)
        looked = Counter({name: round(n / 3) for name, n in _calls(lab).items()})
        hour = Counter({name: n * LOOKS_AN_HOUR for name, n in looked.items()})
        hour["DescribeSubnets"] += 1  # every three hours
        each = sum(looked.values())
    remark = (
        f"computed: {LOOKS_AN_HOUR} looks, one every 30 minutes, of {each} calls each, "
        "counted over three that were 10 s apart; in tests/node/test_reads.py an hour of a "
        "simulated clock goes by"
    )
    return Row("an hour idle", hour, remark, reads=6)


def _sequence(count: int, pool: str, *, settle: int) -> Row:
    """Pods that come and go one after the other, faster than their addresses cool."""
    with _node(f"warmPool: {{addresses: {{{pool}}}}}\n", settle=settle) as (lab, _):
        time.sleep(BOOT_S)
        lab.ask("calls", reset=True)
        began = time.monotonic()
        for number in range(count):
            pod.add(lab, "node1", f"s{number}")
            pod.delete(lab, "node1", f"s{number}")
        took = time.monotonic() - began
        made = _calls(lab)
    return Row(f"{count:,} pods in sequence, cooldown 30 s, {pool}", made, f"{took:.0f} s")


def _burst(count: int) -> Row:
    with _node("warmPool: {addresses: {warm: 4}}\n", settle=0) as (lab, _):
        began = time.monotonic()
        with ThreadPoolExecutor(count) as workers:
            add = partial(pod.add, lab, "node1", budget_s=80)
            jobs = [workers.submit(add, f"p{i}") for i in range(count)]
            made = {job.result().address for job in jobs}
        took = time.monotonic() - began
        return Row(f"{len(made)} pods at once on a cold node", _calls(lab), f"{took:.1f} s")


def table(rows: list[Row]) -> list[str]:
    """Return the rows in Markdown."""
    head = [f"EC2 calls of one {TYPE}", "reads", "goal", "writes", "goal", "by action", ""]
    lines = []
    for row in rows:
        writes = sum(n for name, n in row.calls.items() if not name.startswith("Describe"))
        reads = row.calls.total() - writes
        spelt = ", ".join(f"{n} {name}" for name, n in sorted(row.calls.items())) or "none"
        figures = (*_figure(reads, row.reads), *_figure(writes, row.writes))
        lines.append([row.what, *figures, spelt, row.remark])
    return report.table(head, lines)


def _figure(made: int, most: int | None) -> tuple[str, str]:
    return (str(made), "") if most is None else report.goal(made, most, digits=0)


@contextmanager
def _node(
    document: str, *, settle: int = 4, faults: Mapping[str, float] | None = None
) -> Iterator[tuple[Lab, float]]:
    """A lab with a reconciler on one large node; and how long it took to settle, in seconds.

    Args:
        document: without its first two lines.
        settle: allocatable addresses to wait for; 0 waits for nothing.
        faults: the lab's switches that are set.
    """
    name = f"{nodes.LAB}c{next(_numbers) % 10}"
    nodes.clear(name)
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as directory:
        config = Path(directory) / "node-network.yaml"
        config.write_text(HEAD + document)
        try:
            lab = lifecycle.up(name, types={"node1": TYPE})
            lab.ask("faults", set=faults or {})
            lab.ask("calls", reset=True)
            argv = [*shipped.command(), "run", "-f", str(config)]
            with (lab.names.node_state("node1") / "log").open("w") as log:
                began = time.monotonic()
                process = lab.start("node1", argv, stderr=log)
                nodes.await_listener(lab)
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


if __name__ == "__main__":
    report.write(TITLE, "calls", measure)
