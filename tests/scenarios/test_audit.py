"""``node-network audit``: silent on a healthy node, exact about one that was tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from waiting import until

pytestmark = pytest.mark.lab


def audit(cluster: Any, *more: str) -> Any:
    return cluster.command("node1", "audit", "-f", str(cluster.config), "--apart", "0.2", *more)


def copy_a_record(cluster: Any, one: Any) -> None:
    """Somebody has restored a backup under another name."""
    records = cluster.state() / "attachments"
    (path,) = records.glob(f"*{one.name}:eth0.json")
    body = json.loads(path.read_text()) | {"containerID": "copy"}
    (records / "copy:eth0.json").write_text(json.dumps(body))


def let_its_address_rest(cluster: Any, one: Any) -> None:
    body = {"version": 1, "address": one.address, "until": 9e9}
    (cluster.state() / "cooling" / f"{one.address}.json").write_text(json.dumps(body))


def unassign(cluster: Any, one: Any) -> None:
    (holder,) = [e for e in cluster.lab.enis("node1") if one.address in e["addresses"]]
    cluster.aws(
        "unassign_private_ip_addresses",
        NetworkInterfaceId=holder["id"],
        PrivateIpAddresses=[one.address],
    )


def delete_a_rule(cluster: Any, one: Any) -> None:
    del one
    cluster.ip("rule", "delete", "priority", "1024")


TAMPERINGS: list[tuple[Callable[[Any, Any], None], str, str]] = [
    (copy_a_record, "AssignedTwice", "address {}"),
    (let_its_address_rest, "AssignedAndCooling", "address {}"),
    (unassign, "AddressLost", "attachment "),
    (delete_a_rule, "Differs", "rule ipv4 1024"),
]


def test_all_that_contradicts_is_named_and_a_healthy_node_is_silent(idle: Any) -> None:
    idle.start()
    pods = [idle.add() for _ in TAMPERINGS]
    # Beside the running daemon.
    done = audit(idle)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    idle.stop()
    for one, (tamper, _, _) in zip(pods, TAMPERINGS, strict=True):
        tamper(idle, one)
    done = audit(idle)
    assert done.returncode == 1
    for one, (_, reason, subject) in zip(pods, TAMPERINGS, strict=True):
        start = f"! {reason}: {subject.format(one.address)}"
        assert any(line.startswith(start) for line in done.stdout.splitlines()), done.stdout
    told = json.loads(audit(idle, "-o", "json").stdout)["findings"]
    assert {reason for _, reason, _ in TAMPERINGS} <= {f["reason"] for f in told}


def test_without_ec2_it_says_that_it_could_not_look(idle: Any) -> None:
    idle.start()
    idle.stop()
    idle.lab.ask("faults", set={"denied": ["DescribeNetworkInterfaces"]})
    done = audit(idle)
    assert (done.returncode, done.stdout) == (2, "")
    assert "UnauthorizedOperation" in done.stderr
    idle.lab.ask("faults", set={"denied": []})
    until(lambda: audit(idle).returncode == 0)
