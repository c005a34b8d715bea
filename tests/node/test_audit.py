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


@pytest.mark.parametrize(("tamper", "reason", "subject"), TAMPERINGS)
def test_what_contradicts_is_named_and_a_healthy_node_is_silent(
    idle: Any, tamper: Callable[[Any, Any], None], reason: str, subject: str
) -> None:
    idle.start()
    one = idle.add()
    # Beside the running daemon, pods coming and going.
    done = audit(idle)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    idle.stop()
    tamper(idle, one)
    done = audit(idle)
    assert done.returncode == 1
    lines = [x for x in done.stdout.splitlines() if x.startswith(f"! {reason}: ")]
    assert lines, done.stdout
    assert any(x.startswith(f"! {reason}: {subject.format(one.address)}") for x in lines)
    told = json.loads(audit(idle, "-o", "json").stdout)["findings"]
    assert reason in {f["reason"] for f in told}


def test_without_ec2_it_says_that_it_could_not_look(idle: Any) -> None:
    idle.start()
    idle.stop()
    idle.lab.ask("faults", set={"denied": ["DescribeNetworkInterfaces"]})
    done = audit(idle)
    assert (done.returncode, done.stdout) == (2, "")
    assert "UnauthorizedOperation" in done.stderr
    idle.lab.ask("faults", set={"denied": []})
    until(lambda: audit(idle).returncode == 0)
