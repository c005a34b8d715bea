"""A reboot of a node with pods on all of its ENIs, while EC2 takes its time to attach one."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from e2e.disturbance import NODE
from e2e.network import Network, is_ready
from waiting import until

from lab.kubernetes.places import address

NAME, COUNT = "survivor", 31

BALLAST = 14
"""Pods before the reboot that make three ENIs of 14 pods too few."""

ENIS = 4

ATTACH_S = 2.0
"""Seconds that EC2 takes to attach an ENI."""

GIVING_BACK = re.compile("Detach|Delete|Unassign")
"""How the names of EC2's calls begin that give something back."""

POOL = re.compile(r"domain=eni|quarantine|AddressesExhausted|PoolLimitReached")
"""What is of the pool in a reconciler's log."""

PATIENCE_S = 90.0
"""Seconds for which pods are waited for."""

BACK_S = 20.0
"""Seconds after kubelet's start within which they have to be back."""

BUSY = 8.0
"""Load of each processor, before the reboot, at which a longer time says nothing: all that starts
pods waits for a processor then."""


@dataclass(frozen=True)
class Reboot:
    """What became of a node's pods when it was rebooted.

    Attributes:
        pods: how many there were.
        took_s: from kubelet's start until all run again.
        failed: ADDs that failed.
        reasons: what was said of them.
        enis: its ENIs before and afterwards.
        held: its addresses for pods before and afterwards.
        calls: what EC2 has counted of this node's calls since before it went off, by name.
        load: of each processor of this machine before.
        unready: why the node was not Ready meanwhile, by kubelet's word.
        addresses: its pods' addresses afterwards, by the API server's word and by our records.
    """

    pods: int
    took_s: float
    failed: int
    reasons: str
    enis: tuple[set[str], set[str]]
    held: tuple[set[str], set[str]]
    calls: dict[str, int]
    load: float
    unready: set[str]
    addresses: tuple[dict[str, list[str]], dict[str, list[str]]]


@pytest.fixture(scope="module")
def reboot(network: Network) -> Reboot:
    """A reboot of a node with pods."""
    lab = network.cluster.lab
    lab.ask("faults", set={"attachDelaySeconds": ATTACH_S})
    try:
        with network.deployment(NAME, COUNT, NODE):
            with network.deployment("ballast", BALLAST, NODE):
                until(lambda: len(lab.enis(NODE)) == ENIS, network.trouble)
                until(lambda: network.status(NODE)["settled"], network.trouble, patience_s=90)
            return _reboot(network)
    finally:
        lab.ask("faults", clear=True)


def _reboot(network: Network) -> Reboot:
    lab = network.cluster.lab
    there = _on(network)
    started = {p["metadata"]["name"]: _started(p) for p in there}
    enis, held, failed = _enis(network), _held(network), network.failures()
    lab.ask("calls", reset=True)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)

    def all_back() -> bool:
        pods = _on(network)
        return len(pods) == len(there) and all(
            is_ready(p) and _started(p) != started[p["metadata"]["name"]] for p in pods
        )

    with _told_meanwhile(network) as unready:
        network.cluster.reboot(NODE)
        began = time.monotonic()
        with suppress(AssertionError):  # said by the test that asks for all of them
            until(all_back, patience_s=PATIENCE_S)
        took = time.monotonic() - began
    # What it would give back, it gives back before it has settled.
    until(lambda: network.status(NODE)["settled"], network.trouble)
    network.say(f"{NODE}: {network.status(NODE)['pool']}\n{_pool_log(network)}")
    told = {p["metadata"]["name"]: [p["status"]["podIP"]] for p in _on(network) if is_ready(p)}
    seen = Reboot(
        len(there),
        took,
        network.failures() - failed,
        network.reasons(failed),
        (enis, _enis(network)),
        (held, _held(network)),
        lab.ask("callers")["callers"].get(str(address(NODE)), {}),
        load,
        unready,
        (told, network.recorded(NAME)),
    )
    network.note(
        f"reboot of a node with {COUNT} pods and {len(enis)} ENIs, attach delay {ATTACH_S:.0f} s: "
        "all back after kubelet's start, s; ADDs that failed; calls of EC2",
        f"{took:.1f} ({len(told)} of {seen.pods}); {seen.failed}; {seen.calls}",
    )
    if seen.failed:
        network.say(seen.reasons)
    return seen


@contextmanager
def _told_meanwhile(network: Network) -> Iterator[set[str]]:
    """Collect what kubelet says of a node that is not Ready."""
    found: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            for each in network.api.get(f"/api/v1/nodes/{NODE}")["status"]["conditions"]:
                if each["type"] == "Ready" and each["status"] != "True":
                    found.add(each["message"])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _pool_log(network: Network) -> str:
    """Return what the node's reconciler has logged of its pool since it was started last."""
    log = network.daemon_log(NODE).rpartition(" INFO started")[2]
    return "\n".join(x.partition(" F ")[2] for x in log.splitlines() if POOL.search(x))


def _on(network: Network) -> list[dict[str, Any]]:
    return [p for p in network.pods(f"app={NAME}") if p["spec"].get("nodeName") == NODE]


def _enis(network: Network) -> set[str]:
    return {e["id"] for e in network.cluster.lab.enis(NODE)}


def _held(network: Network) -> set[str]:
    return {a for e in network.cluster.lab.enis(NODE) for a in e["addresses"]}


def _started(pod: dict[str, Any]) -> str:
    (status,) = pod["status"]["containerStatuses"]
    return str(status.get("containerID"))


def test_after_a_reboot_all_pods_run_with_the_addresses_that_are_recorded(reboot: Reboot) -> None:
    told, recorded = reboot.addresses
    assert len(told) == reboot.pods == COUNT
    assert told == recorded


def test_after_a_reboot_all_pods_are_ready_soon_after_kubelet_starts(reboot: Reboot) -> None:
    if reboot.took_s >= BACK_S and reboot.load > BUSY:
        pytest.skip(f"{reboot.took_s:.1f} s at a load of {reboot.load:.0f} for each processor")
    assert reboot.took_s < BACK_S


def test_a_reboot_gives_back_no_eni_and_no_address(reboot: Reboot) -> None:
    """By what EC2 has, and by its own count of what it was asked."""
    before, after = reboot.enis
    assert len(before) == ENIS
    assert before <= after
    assert reboot.held[0] <= reboot.held[1]
    assert reboot.calls.get("DescribeNetworkInterfaces"), "the node's calls are not counted"
    assert {c: n for c, n in reboot.calls.items() if GIVING_BACK.match(c)} == {}


def test_a_reboot_fails_no_add(reboot: Reboot) -> None:
    assert reboot.failed == 0, reboot.reasons


def test_a_node_is_not_ready_after_a_boot_before_its_reconciler_serves(reboot: Reboot) -> None:
    """The configuration from before the boot does not stand for a network."""
    assert any("cni plugin not initialized" in told for told in reboot.unready), reboot.unready
