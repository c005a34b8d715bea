"""Time to repair: somebody breaks a node by hand, and the kernel is watched until it is whole.

The watcher is not the product: it compares what the kernel holds with what it held before. It
looks every few milliseconds where a repair takes milliseconds, which is how exact the times are.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from benchmarks import nodes, report, shipped
from lab import lifecycle, netns
from lab.ec2_client import open_ec2
from lab.lifecycle import Lab
from lab.pod import Pod, add
from reconciler.daemon.client import ask
from reconciler.ipam.sources import TRUST_S
from reconciler.targets.netlink.rtnetlink import Rtnetlink
from reconciler.targets.netlink.tables import AF, LINKS, ROUTES, RULES
from reconciler.targets.nftables.target import Nft

TITLE = "Repair"

SAMPLES = report.number("REPAIR_SAMPLES", 20)
PODS = 16
PATIENCE_S = 120.0
"""Seconds; an ENI that goes within a minute of our attaching it may be believed in that long."""

RESYNC_S = 5
"""Seconds between audits, which is all there is when events are off."""

AUDIT_LOOK_S = 0.02
"""Seconds between two looks of the watcher where a repair takes seconds."""

DOCUMENT = f"""\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {{addresses: {{warm: 2, minimum: {PODS + 8}}}, cooldown: 0s}}
reconcile: {{resync: {RESYNC_S}s}}
"""
MANY_ENIS = DOCUMENT.replace(f"minimum: {PODS + 8}", "minimum: 190")
"""Seven secondary ENIs of an m5.4xlarge, all with single addresses."""

OURS = 201
"""Our protocol number in routes and rules."""

State = tuple[frozenset[Any], ...]


@dataclass(frozen=True)
class Case:
    """One way to break a node.

    Attributes:
        command: what is run on the node.
        kind: the object whose drift is counted and logged, in the words of both.
    """

    name: str
    command: tuple[str, ...]
    kind: str


def cases(pods: list[Pod]) -> list[Case]:
    """The ways to break it, in the kernel."""
    veth, address = pods[0].result["interfaces"][0]["name"], pods[0].address
    rules = "for i in 1 2 3 4 5 6 7 8 9; do ip rule delete protocol 201 || exit 0; done"
    return [
        Case("all our ip rules deleted", ("sh", "-c", f"{rules} 2>/dev/null"), "rule"),
        Case("`nft flush ruleset`", ("nft", "flush", "ruleset"), "nft-table"),
        Case("`ip link set eth1 down`", ("ip", "link", "set", "eth1", "down"), "link"),
        Case(
            "an attached pod's route deleted",
            ("ip", "route", "delete", f"{address}/32", "table", "512"),
            "route",
        ),
        Case(
            "a veth's MAC rewritten",
            ("ip", "link", "set", veth, "address", "02:00:00:00:00:77"),
            "veth",
        ),
    ]


class Node:
    """A node with a running reconciler, seen from its kernel."""

    def __init__(self, lab: Lab, config: Path, document: str) -> None:
        self._lab = lab
        self._config = config
        self._document = document
        self._socket = lab.names.node_state("node1") / "node-network.sock"
        self._edits = 0
        with netns.inside(lab.names.namespace("node1")):
            self._netlink = Rtnetlink()
            self._nft = Nft()

    def state(self) -> State:
        """What the kernel holds of ours."""
        links = self._netlink.dump(LINKS)
        routes = [m for family in AF.values() for m in self._netlink.dump(ROUTES, family=family)]
        rules = [m for family in AF.values() for m in self._netlink.dump(RULES, family=family)]
        return (
            frozenset((m["ifname"], m["address"], m["mtu"], m["flags"] & 1) for m in links),
            frozenset(
                (m.get("dst"), m["dst_len"], m.get("table"), m.get("oif"), m.get("gateway"))
                for m in routes
                if m["proto"] == OURS
            ),
            frozenset(
                tuple(m.get(name) for name in ("priority", "table", "fwmark", "fwmask", "src"))
                for m in rules
                if m.get("protocol") == OURS
            ),
            self._nft.observe(),
        )

    def run(self, *command: str) -> None:
        """Run a command on the node."""
        subprocess.run(self._lab.command("node1", command), check=True)

    def status(self) -> dict[str, Any]:
        """What the reconciler says."""
        found: dict[str, Any] = ask(self._socket, {"do": "status"})["status"]
        return found

    def drift(self, kind: str) -> float:
        """What the reconciler has counted of one kind of object."""
        start = "node_network_drift_repaired_total{"
        return sum(
            float(line.rpartition(" ")[2])
            for line in self.status()["metrics"].splitlines()
            if line.startswith(start) and f'kind="{kind}"' in line
        )

    def write(self, text: str) -> None:
        """Put a document in the place of the one before."""
        fresh = self._config.with_suffix(".fresh")
        fresh.write_text(text)
        fresh.rename(self._config)

    def refresh(self) -> None:
        """Have the reconciler forget what was broken before, or it would see a fight."""
        before = self.status()["document"]["generation"]
        self._edits += 1
        self.write(f"{self._document}# {self._edits}\n")
        wait(lambda: self.status()["document"]["generation"] > before)
        self.settle()

    def settle(self) -> None:
        """Wait until the reconciler has nothing to do."""
        wait(lambda: (s := self.status())["settled"] and s["pool"].get("allocatable", 0) >= 2)


def wait(holds: Callable[[], object], every_s: float = 0.02) -> float:
    """Wait until something holds; return the seconds that took.

    Raises:
        TimeoutError: it did not within two minutes.
    """
    began = time.perf_counter()
    while not holds():
        if time.perf_counter() - began > PATIENCE_S:
            raise TimeoutError("it was not repaired")
        time.sleep(every_s)
    return time.perf_counter() - began


def measure() -> list[str]:
    """Return the section in Markdown."""
    # What is broken by hand is repaired in milliseconds; the others wait for most of their time.
    with ThreadPoolExecutor(2) as strands:
        waiting = strands.submit(lambda: [*_without_notice(), *_without_events()])
        rows = [*_with_events(), *waiting.result()]
    return [
        f"From the end of the command that breaks it until the kernel holds what it held before, "
        f"as another process sees it; {PODS} pods, {SAMPLES} times each. For the swaps, from the "
        "last one until its document is in force; for an ENI, until the node has as many again, "
        "each with its link, rules and routes; the lab's EC2 attaches one in a moment. "
        f"It was attached more than {TRUST_S:.0f} s ago: so long is EC2's answer believed in, and "
        "one that goes sooner is missed later by that. All is counted in "
        "`node_network_drift_repaired_total` and logged as `drift repaired`, with what was found "
        "and what was done.",
        "",
        "| what was done | ms, median | ms, worst | counted as |",
        "|---|---|---|---|",
        *rows,
    ]


def _with_events() -> list[str]:
    with _node("f") as (node, lab):
        pods = [add(lab, "node1", f"p{number}") for number in range(PODS)]
        node.settle()
        rows = [_row(c.name, _repairs(node, c), node, c.kind) for c in cases(pods)]
        return [*rows, _row("100 swaps in 10 s, half of them invalid", _swaps(node), node, "")]


def _without_notice() -> list[str]:
    with _node("g", document=MANY_ENIS, type_="m5.4xlarge") as (node, lab):
        return [_row("an ENI detached by hand", _detachments(node, lab), node, "eni")]


def _without_events() -> list[str]:
    off = f"events off, an audit every {RESYNC_S} s"
    with _node("g", "--no-events") as (node, lab):
        pods = [add(lab, "node1", f"p{number}") for number in range(PODS)]
        node.settle()
        return [
            _row(f"{c.name}; {off}", _repairs(node, c, AUDIT_LOOK_S), node, c.kind)
            for c in cases(pods)[:2]
        ]


def _row(name: str, times: list[float], node: Node, kind: str) -> str:
    counted = f'`kind="{kind}"`: {node.drift(kind):.0f}' if kind and node.drift(kind) else "-"
    ms = [1000 * t for t in times]
    print(f"{name}: {statistics.median(ms):.0f} / {max(ms):.0f}", file=sys.stderr)
    return f"| {name} | {statistics.median(ms):.0f} | {max(ms):.0f} | {counted} |"


def _repairs(node: Node, case: Case, look_s: float = 0.001) -> list[float]:
    times = []
    for _ in range(SAMPLES):
        node.refresh()
        time.sleep(0.7)  # longer than what of the edit itself is still looked at
        whole = node.state()
        node.run(*case.command)
        began = time.perf_counter()
        # The first look may come too late to see it broken, never too early to see it whole.
        wait(partial(_holds, node, whole), look_s)
        times.append(time.perf_counter() - began)
    return times


def _swaps(node: Node) -> list[float]:
    """Let the document change a hundred times; the last one is valid and another one each time."""
    times = []
    for number in range(SAMPLES):
        address = f"198.18.{number}.0/24"
        for swap in range(100):
            valid = f"{DOCUMENT}snat: {{excludeCIDRs: [198.19.{swap}.0/24]}}\n"
            node.write(valid if swap % 2 else f"{DOCUMENT}snat: {{excludeCIDR: [nonsense]}}\n")
            time.sleep(0.1)
        node.write(f"{DOCUMENT}snat: {{excludeCIDRs: [{address}]}}\n")
        times.append(wait(partial(_excludes, node, ip_network(address)), 0.001))
    node.refresh()
    return times


def _detachments(node: Node, lab: Lab) -> list[float]:
    """Take ENIs away, as an operator in the console does; EC2 gives no notice."""
    times: list[float] = []
    while len(times) < SAMPLES:
        node.refresh()
        time.sleep(TRUST_S)
        for victim in [e["id"] for e in lab.enis("node1") if e["device"]]:
            before = len(_attached(lab))
            _detach(lab, victim)
            began = time.perf_counter()
            wait(partial(_is_gone, lab, victim))
            wait(partial(_is_replaced, lab, before))
            node.settle()
            times.append(time.perf_counter() - began)
    return times[:SAMPLES]


def _detach(lab: Lab, eni_id: str) -> None:
    with netns.inside(lab.names.namespace("vpchost")):
        ec2 = open_ec2()
        answer = ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])
        (shown,) = answer["NetworkInterfaces"]
        ec2.detach_network_interface(AttachmentId=shown["Attachment"]["AttachmentId"])


def _holds(node: Node, whole: State) -> bool:
    return node.state() == whole


def _excludes(node: Node, network: IPv4Network | IPv6Network) -> bool:
    return any(getattr(o, "first", None) == network.network_address for o in node.state()[3])


def _attached(lab: Lab) -> set[str]:
    return {e["id"] for e in lab.enis("node1") if e["status"] == "attached"}


def _is_gone(lab: Lab, eni_id: str) -> bool:
    return eni_id not in _attached(lab)


def _is_replaced(lab: Lab, number: int) -> bool:
    """Whether the node has as many ENIs as before, the detached one or another in its place."""
    return len(_attached(lab)) == number


@contextmanager
def _node(
    suffix: str, *more: str, document: str = DOCUMENT, type_: str = "m5.large"
) -> Iterator[tuple[Node, Lab]]:
    name = f"{nodes.LAB}{suffix}"
    nodes.clear(name)
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as directory:
        config = Path(directory) / "node-network.yaml"
        config.write_text(document)
        lab = lifecycle.up(name, types={"node1": type_})
        try:
            with (lab.names.node_state("node1") / "log").open("w") as log:
                argv = [*shipped.command(), "run", "-f", str(config), *more]
                process = lab.start("node1", argv, stderr=log)
                nodes.await_listener(lab)
                node = Node(lab, config, document)
                node.settle()
                yield node, lab
                process.terminate()
                process.wait()
        finally:
            lifecycle.down(name)


if __name__ == "__main__":
    report.write(TITLE, "repair", measure)
