"""EC2 is slow, throttles, denies and loses answers: pods with free addresses do not notice."""

from __future__ import annotations

import time
from typing import Any

import pytest
from waiting import until

from lab.pod import PodError
from lab.traffic import Receiver, probe

pytestmark = pytest.mark.lab


def test_pods_start_from_free_addresses_while_an_eni_is_being_attached(idle: Any) -> None:
    """The first nine addresses are on the primary; attaching the others takes very long here."""
    idle.lab.ask("faults", set={"attachDelaySeconds": 60})
    idle.launch()
    until(idle.answers)
    began = time.monotonic()
    made = [idle.add() for _ in range(5)]
    assert time.monotonic() - began < 20
    attaching = ["attached", "attaching", "attaching"]
    until(lambda: [e["status"] for e in idle.lab.enis("node1")] == attaching, "two on their way")
    with Receiver(idle.lab.names.namespace("vpchost")):
        assert probe(made[0].namespace, "10.0.9.10").source == made[0].address


def test_drift_is_repaired_while_ec2_denies_everything(idle: Any) -> None:
    idle.start()
    denied = ["DescribeNetworkInterfaces", "DescribeSubnets", "CreateNetworkInterface"]
    idle.lab.ask("faults", set={"denied": denied})
    before = idle.drift()
    idle.ip("rule", "delete", "priority", "512")
    until(lambda: idle.drift() > before)
    assert idle.add().address


@pytest.mark.parametrize(
    "switches",
    [
        {"throttle": {"*": [8, 2]}},
        {"errors": [{"action": "CreateNetworkInterface", "code": None, "when": "after"}]},
        {"errors": [{"action": "AttachNetworkInterface", "code": None, "when": "after"}]},
        {"errors": [{"action": "AttachNetworkInterface", "code": "InternalError"}]},
        {"errors": [{"action": "AssignPrivateIpAddresses", "code": None, "when": "after"}]},
        {"attachDelaySeconds": 1.5},
    ],
    ids=[
        "throttled",
        "creation's answer lost",
        "attachment's answer lost",
        "attachment failed",
        "assignment's answer lost",
        "attaching takes time",
    ],
)
def test_the_pool_is_filled_in_spite_of_it_and_nothing_is_made_twice(
    idle: Any, switches: dict[str, Any]
) -> None:
    idle.lab.ask("faults", set=switches)
    idle.launch()
    until(idle.answers)
    until(idle.is_settled, patience_s=60)
    enis = idle.lab.enis("node1")
    assert [e["device"] for e in enis] == [0, 1, 2]
    assert sum(len(e["addresses"]) - 1 for e in enis) == 24
    assert len(idle.lab.ask("status")["enis"]) == 6  # node2 and two hosts have one each
    idle.lab.ask("faults", clear=True)
    until(lambda: idle.diff().returncode == 0)  # what was throttled is called after its backoff


def test_a_denial_is_a_condition_that_ends_with_it(idle: Any) -> None:
    idle.lab.ask("faults", set={"denied": ["CreateNetworkInterface"]})
    idle.launch()
    until(idle.answers)
    reasons = lambda: [c["reason"] for c in idle.status()["conditions"]]  # noqa: E731
    until(lambda: "UnauthorizedOperation" in reasons())
    shown = idle.command("node1", "status")
    assert shown.returncode == 1
    assert "CreateNetworkInterface" in shown.stdout or "create-network-interface" in shown.stdout
    held = [idle.add() for _ in range(9)]  # all that the primary ENI has
    with pytest.raises(
        PodError, match=r"AddressesExhausted: .*: UnauthorizedOperation: .*You are not"
    ):
        idle.add(budget_s=1)
    assert len({p.address for p in held}) == 9
    idle.lab.ask("faults", clear=True)
    until(lambda: reasons() == [], patience_s=110)


def test_terminating_closes_the_socket_and_leaves_the_datapath(idle: Any) -> None:
    idle.start()
    before = idle.lab.run("node1", ["nft", "list", "ruleset"]).stdout
    idle.stop()
    assert not idle.socket().exists()
    assert idle.lab.run("node1", ["nft", "list", "ruleset"]).stdout == before
