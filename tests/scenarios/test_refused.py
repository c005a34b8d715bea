"""EC2 refuses, then allows it again: how soon pods that wait have what they wait for."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

GROWTH = ["AssignPrivateIpAddresses", "CreateNetworkInterface"]


def configure(cluster: Any, least: int) -> None:
    cluster.config.write_text(
        "apiVersion: node-network/v1alpha1\n"
        "kind: NodeNetwork\n"
        f"warmPool: {{addresses: {{warm: 0, minimum: {least}, surplus: 0}}, cooldown: 2s}}\n"
    )
    cluster.least = least


def refusals(cluster: Any) -> int:
    made = cluster.lab.ask("calls")["calls"]
    return sum(made.get(name, 0) for name in GROWTH)


def denial(cluster: Any) -> str:
    """Return what the condition says."""
    found = [c for c in cluster.status()["conditions"] if c["reason"] == "UnauthorizedOperation"]
    return " ".join(str(c["text"]) for c in found if "again in" in str(c["text"]))


def test_pods_that_wait_start_soon_after_a_denial_is_lifted(idle: Any) -> None:
    """They have waited for up to 240 s more; a restart cured it at once."""
    configure(idle, 4)
    idle.start()
    idle.lab.ask("faults", set={"denied": GROWTH})
    idle.lab.ask("calls", reset=True)
    with ThreadPoolExecutor(6) as workers:
        jobs = [workers.submit(idle.add, budget_s=100) for _ in range(6)]
        until(lambda: refusals(idle) >= 4, "refusals", patience_s=60)
        idle.lab.ask("faults", clear=True)
        lifted = time.monotonic()
        pods = [job.result() for job in jobs]
    assert time.monotonic() - lifted < 20.0
    assert len({one.address for one in pods}) == 6


def test_a_person_who_has_lifted_a_denial_need_not_wait(idle: Any) -> None:
    """No pod waits, so the backoff is long; the condition names what ends it."""
    configure(idle, 4)
    idle.start()
    idle.lab.ask("faults", set={"denied": GROWTH})
    configure(idle, 8)
    until(lambda: "node-network retry" in denial(idle), "the denial")

    def wait_s() -> float:
        told = denial(idle).rpartition("again in ")[2].partition(" s")[0]
        return float(told or 0)

    # Its first waits are random; one that outlasts what follows comes within a few.
    until(lambda: wait_s() > 15.0, lambda: denial(idle), patience_s=120)
    idle.lab.ask("faults", clear=True)
    began = time.monotonic()
    done = idle.command("node1", "retry")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    until(idle.is_settled, lambda: str(idle.status()["conditions"]))
    assert time.monotonic() - began < 10.0
    idle.stop()
    done = idle.command("node1", "retry")
    assert done.returncode == 2
    assert "is 'node-network run' running?" in done.stderr
