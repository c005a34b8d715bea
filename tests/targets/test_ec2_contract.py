"""What the EC2 target promises, of EC2 over HTTP (the lab's) and of the fake alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import pytest
from builders import SUBNET, document, eni, inputs, node
from fakes import FakeEc2
from werkzeug.serving import make_server

from reconciler.core.facts import Inputs
from reconciler.core.pool import Demand
from reconciler.domains import eni as domain
from reconciler.domains.eni import AssignAddresses, AttachEni, Limits, Pool, TieToInstance
from reconciler.engine import Domain, converge
from reconciler.errors import ObserveError
from reconciler.targets.ec2 import Ec2


@dataclass
class World:
    target: Any
    now: Inputs

    def pool(self, total: int) -> Pool:
        return replace(domain.desire(self.now), total=total)

    def reach(self, minimum: int) -> Any:
        warm = {"warm": 0, "minimum": minimum, "cooldown": "0s"}
        self.now = replace(self.now, document=document(warmPool=warm))
        return converge([Domain("eni", domain.desire, domain.plan, self.target)], self.now)["eni"]

    def cloud(self) -> Any:
        return self.target.observe([self.pool(0)])


@pytest.fixture(params=["fake", "http"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        only = eni(0, 0, primary=SUBNET[10], delete_on_termination=True)
        yield World(FakeEc2([only], Limits(3, 10), SUBNET), inputs(1))
        return
    ec2 = request.getfixturevalue("ec2")
    target = Ec2(ec2.instance_id, "us-east-1")
    yield World(target, inputs(1, node=node(instance_id=ec2.instance_id), demand=Demand()))


def test_an_instance_is_seen_with_its_limits_and_its_subnet(world: World) -> None:
    cloud = world.cloud()
    assert cloud.limits == Limits(enis=3, addresses_per_eni=10)
    (only,) = cloud.enis
    assert (only.device_index, only.status, only.owned) == (0, "attached", True)
    assert only.primary == ip_address("10.0.1.10")
    assert only.gateway == ip_address("10.0.1.1")
    assert cloud.free_addresses == {only.subnet_id: 250}


def test_a_pool_is_filled_and_spread_over_enis(world: World) -> None:
    outcome = world.reach(24)
    assert outcome.settled
    enis = world.cloud().enis
    assert [(e.device_index, len(e.secondaries), e.status) for e in enis] == [
        (0, 9, "attached"),
        (1, 9, "attached"),
        (2, 6, "attached"),
    ]
    assert all(e.owned and e.delete_on_termination for e in enis)
    held = [a for e in enis for a in (e.primary, *e.secondaries)]
    assert len(held) == len(set(held))


def test_more_addresses_than_an_eni_holds_are_refused_by_name(world: World) -> None:
    (only,) = world.cloud().enis
    (failure,) = world.target.apply([AssignAddresses(only.eni_id, 10, "test")])
    assert failure.reason == "PrivateIpAddressLimitExceeded"


def test_an_occupied_device_index_is_refused_by_name(world: World) -> None:
    world.reach(10)
    first, second = world.cloud().enis
    (failure,) = world.target.apply([AttachEni(world.now.node.instance_id, second.eni_id, 0, "t")])
    assert failure.reason == "InvalidParameterValue"
    assert world.cloud().enis == (first, second)


def test_what_exceeds_the_instance_is_a_refusal_with_its_numbers(world: World) -> None:
    outcome = world.reach(40)
    assert outcome.remaining.actions == ()
    (refusal,) = outcome.remaining.refusals
    assert refusal.reason == "PoolLimitReached"
    assert "40 addresses wanted, 27 held" in refusal.message
    assert "3 ENIs x 9 = 27" in refusal.message


def test_tying_twice_is_the_same_as_once(world: World) -> None:
    world.reach(10)
    second = world.cloud().enis[1]
    tie = TieToInstance(second.eni_id, second.attachment_id or "", "test")
    assert world.target.apply([tie, tie]) == ()
    assert world.cloud().enis[1].delete_on_termination


# What only a real wire can do.


def test_a_creation_whose_answer_was_lost_makes_one_eni(ec2: Any) -> None:
    """The call succeeded, nobody heard: the next look finds the ENI and attaches that one."""
    world = World(
        Ec2(ec2.instance_id, "us-east-1"), inputs(1, node=node(instance_id=ec2.instance_id))
    )
    lost = {"action": "CreateNetworkInterface", "code": None, "when": "after"}
    ec2.cloud.faults.set(errors=[lost])
    outcome = world.reach(12)
    assert outcome.settled, outcome
    assert [len(e.secondaries) for e in world.cloud().enis] == [9, 3]
    assert len(ec2.cloud.enis()) == 2


def test_an_attachment_that_failed_is_finished_not_repeated(ec2: Any) -> None:
    world = World(
        Ec2(ec2.instance_id, "us-east-1"), inputs(1, node=node(instance_id=ec2.instance_id))
    )
    broken = {"action": "AttachNetworkInterface", "code": "InternalError", "when": "before"}
    ec2.cloud.faults.set(errors=[broken])
    assert world.reach(12).settled
    assert len(ec2.cloud.enis()) == 2
    assert ec2.cloud.faults.calls()["CreateNetworkInterface"] == 1


@pytest.mark.parametrize(
    ("switch", "reason"),
    [
        ({"denied": ["DescribeNetworkInterfaces"]}, "UnauthorizedOperation"),
        ({"throttle": {"*": [0, 0]}}, "RequestLimitExceeded"),
    ],
)
def test_a_look_that_failed_is_no_look(ec2: Any, switch: dict[str, Any], reason: str) -> None:
    ec2.cloud.faults.set(**switch)
    with pytest.raises(ObserveError, match=reason):
        Ec2(ec2.instance_id, "us-east-1").observe([domain.desire(inputs(1))])


def test_a_denied_action_says_that_trying_again_does_not_help(ec2: Any) -> None:
    target = Ec2(ec2.instance_id, "us-east-1")
    ec2.cloud.faults.set(denied=["AssignPrivateIpAddresses"])
    (only,) = target.observe([domain.desire(inputs(1))]).enis
    (failure,) = target.apply([AssignAddresses(only.eni_id, 1, "test")])
    assert (failure.reason, failure.retryable) == ("UnauthorizedOperation", False)


def test_enis_of_others_are_foreign(ec2: Any) -> None:
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets["nodes-a"])
    foreign = made["NetworkInterface"]["NetworkInterfaceId"]
    ec2.client.attach_network_interface(
        NetworkInterfaceId=foreign, InstanceId=ec2.instance_id, DeviceIndex=1
    )
    world = World(
        Ec2(ec2.instance_id, "us-east-1"), inputs(1, node=node(instance_id=ec2.instance_id))
    )
    assert [(e.eni_id == foreign, e.owned) for e in world.cloud().enis] == [
        (False, True),
        (True, False),
    ]
    world.reach(27)  # one ENI fewer is left: 18 fit
    (theirs,) = [e for e in world.cloud().enis if e.eni_id == foreign]
    assert theirs.secondaries == ()
    assert sum(len(e.secondaries) for e in world.cloud().enis) == 18


def test_calls_are_counted(ec2: Any) -> None:
    target = Ec2(ec2.instance_id, "us-east-1")
    target.observe([domain.desire(inputs(1))])
    assert dict(target.calls) == ec2.cloud.faults.calls()


def test_an_answer_that_is_no_answer_of_ec2_is_an_unreadable_world(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy's page, for one."""

    def page(environ: Any, start_response: Any) -> list[bytes]:
        start_response("403 Forbidden", [("Content-Type", "text/html")])
        return [b"<html><body>Access denied by policy</body></html>"]

    server = make_server("127.0.0.1", 0, page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", f"http://127.0.0.1:{server.port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        target = Ec2("i-1", "us-east-1")
        pool = domain.desire(inputs(1))
        with pytest.raises(ObserveError, match="EC2"):
            target.observe([pool])
        (failure,) = target.apply([AssignAddresses("eni-1", 1, "test")])
        assert failure.retryable
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
