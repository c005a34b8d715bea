"""The real EC2 target over HTTP: lost and stale answers, ENIs of others, and what is no answer."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from builders import inputs, node
from targets.test_ec2_contract import Journal, World, over_http, stock_tags
from werkzeug.serving import make_server

from reconciler.domains import eni as domain
from reconciler.errors import ObserveError
from reconciler.ipam.cloud import (
    CLUSTER_TAG,
    INSTANCE_TAG,
    STOCK_INSTANCE_TAG,
    Limits,
)
from reconciler.ipam.ec2_action import (
    AdoptEni,
    AssignAddresses,
    AssignPrefixes,
    ReleaseAddresses,
    SetSecurityGroups,
)
from reconciler.targets.ec2.caller import InProcess
from reconciler.targets.ec2.target import Ec2

# What only a real wire can do.


def test_where_no_block_is_left_the_subnet_rests_and_not_the_action(ec2: Any) -> None:
    world = over_http(ec2)
    (only,) = world.cloud().enis
    for n in range(15):  # one address in each block, spread by hand
        ec2.client.create_network_interface(
            SubnetId=only.subnet_id, PrivateIpAddress=f"10.0.1.{16 * n + 11}"
        )
    one = AssignPrefixes(only.eni_id, only.subnet_id, "test", 1)
    assert world.apply(one) == ["InsufficientCidrBlocks"]
    assert world.target.drain()[0] == (), "they are counted first, and it is planned anew"
    assert world.apply(one) == ["InsufficientCidrBlocks"]
    ((failure,), _) = world.target.drain()
    assert failure.scope == f"prefixes:{only.subnet_id}"


def test_a_stale_look_does_not_unsee_what_ec2_has_answered(ec2: Any) -> None:
    """Without it, an assignment by count is repeated until the ENI is full."""
    world = over_http(ec2)
    world.cloud()
    time.sleep(0.6)  # so that there is a past to show
    ec2.cloud.faults.set(staleEc2Seconds=0.5)
    for _ in range(3):
        world.reach(12)
    enis = world.cloud().enis
    assert [len(e.secondaries) for e in enis] == [9, 3]
    assert enis[1].device_index == 1
    ec2.cloud.faults.clear()
    assert [len(e.secondaries) for e in world.cloud().enis] == [9, 3]
    assert ec2.cloud.faults.calls()["CreateNetworkInterface"] == 1
    assert ec2.cloud.faults.calls()["AssignPrivateIpAddresses"] == 1


def test_an_answer_is_trusted_for_a_minute_and_no_longer(ec2: Any) -> None:
    now = [0.0]
    world = over_http(ec2, clock=lambda: now[0])
    world.reach(3)
    (only,) = world.cloud().enis
    ec2.client.unassign_private_ip_addresses(
        NetworkInterfaceId=only.eni_id, PrivateIpAddresses=[str(only.secondaries[0])]
    )
    assert len(world.cloud().enis[0].secondaries) == 3
    now[0] = 61.0
    assert len(world.cloud().enis[0].secondaries) == 2


def test_our_own_bucket_ends_a_storm_of_calls(ec2: Any) -> None:
    world = over_http(ec2, clock=lambda: 0.0)
    (only,) = world.cloud().enis
    tie = SetSecurityGroups(only.eni_id, only.security_groups, "test")
    reasons = world.apply(*[tie] * 103)
    assert reasons == ["BudgetExhausted"] * 3


def test_a_creation_whose_answer_was_lost_makes_one_eni(ec2: Any) -> None:
    """The call succeeded, nobody heard.

    The next observation finds the ENI and attaches that one.
    """
    world = over_http(ec2)
    lost = {"action": "CreateNetworkInterface", "code": None, "when": "after"}
    ec2.cloud.faults.set(errors=[lost])
    outcome = world.reach(12)
    assert outcome.settled, outcome
    assert [len(e.secondaries) for e in world.cloud().enis] == [9, 3]
    assert len(ec2.cloud.enis()) == 2


def test_what_may_have_been_given_back_is_not_shown_as_ours(ec2: Any) -> None:
    """Not even by the answer that gave it, a moment before: a pod would get what is gone."""
    world = over_http(ec2, clock=lambda: 0.0)
    (only,) = world.cloud().enis
    world.apply(AssignAddresses(only.eni_id, only.subnet_id, "test", 3))
    held = world.cloud().enis[0].secondaries
    gone = held[-1:]
    lost = {"action": "UnassignPrivateIpAddresses", "code": None, "when": "after"}
    ec2.cloud.faults.set(errors=[lost])
    assert world.apply(ReleaseAddresses(only.eni_id, gone, "test")) != []
    assert world.cloud().enis[0].secondaries == held[:-1]


def test_what_was_certainly_not_given_back_is_still_ours(ec2: Any) -> None:
    world = over_http(ec2, clock=lambda: 0.0)
    (only,) = world.cloud().enis
    world.apply(AssignAddresses(only.eni_id, only.subnet_id, "test", 3))
    held = world.cloud().enis[0].secondaries
    ec2.cloud.faults.set(denied=["UnassignPrivateIpAddresses"])
    assert world.apply(ReleaseAddresses(only.eni_id, held[-1:], "test")) != []
    assert world.cloud().enis[0].secondaries == held


def test_enis_on_other_network_cards_are_shown_and_asked_for_nothing(ec2: Any) -> None:
    """One at index 0 was taken for the primary, and the pool stood still while it was asked."""
    made = ec2.client.run_instances(
        ImageId="ami-1",
        InstanceType="p4d.24xlarge",
        MinCount=1,
        MaxCount=1,
        NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": ec2.subnets["nodes-a"]}],
    )
    ec2.instance_id = made["Instances"][0]["InstanceId"]
    for card in (1, 2, 3):
        efa = ec2.client.create_network_interface(
            SubnetId=ec2.subnets["nodes-a"], InterfaceType="efa-only"
        )["NetworkInterface"]["NetworkInterfaceId"]
        ec2.client.attach_network_interface(
            NetworkInterfaceId=efa,
            InstanceId=ec2.instance_id,
            DeviceIndex=0,
            NetworkCardIndex=card,
        )
    # And an ordinary one with addresses, at the index that is ours on the first card.
    other = ec2.client.create_network_interface(
        SubnetId=ec2.subnets["nodes-a"], SecondaryPrivateIpAddressCount=3
    )["NetworkInterface"]["NetworkInterfaceId"]
    ec2.client.attach_network_interface(
        NetworkInterfaceId=other, InstanceId=ec2.instance_id, DeviceIndex=1, NetworkCardIndex=1
    )
    mine = [e for e in ec2.cloud.enis() if e.instance_id == ec2.instance_id]
    mac = next(e.mac for e in mine if e.network_card == 0)
    journal = Journal()
    target = Ec2(ec2.instance_id, "us-east-1", journal, caller=InProcess("us-east-1"))
    facts = node(instance_id=ec2.instance_id, instance_type="p4d.24xlarge", primary_mac=mac)
    world = World(target, inputs(1, node=facts), journal)
    assert world.cloud().limits == Limits(15, 50)
    outcome = world.reach(60)
    assert outcome.settled, outcome.errors
    cloud = world.cloud()
    assert [(e.device_index, len(e.secondaries)) for e in cloud.enis] == [(0, 49), (1, 11)]
    shown = {(e.card, e.device_index, e.kind) for e in cloud.other_cards}
    efa_only = {(card, 0, "efa-only") for card in (1, 2, 3)}
    assert shown == efa_only | {(1, 1, "interface")}
    assert world.reach(60).plan.actions == ()


def test_an_attachment_that_failed_is_finished_not_repeated(ec2: Any) -> None:
    world = over_http(ec2)
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
    with pytest.raises(ObserveError, match=f"DescribeNetworkInterfaces: {reason}") as caught:
        Ec2(ec2.instance_id, "us-east-1", Journal(), caller=InProcess("us-east-1")).observe(
            [domain.desire(inputs(1))]
        )
    denied = reason == "UnauthorizedOperation"
    assert ("allow ec2:DescribeNetworkInterfaces" in str(caught.value)) == denied
    # The condition's word is EC2's, and not "Observe".
    assert caught.value.issue.reason == reason


def test_a_denied_action_says_that_trying_again_does_not_help(ec2: Any) -> None:
    target = Ec2(ec2.instance_id, "us-east-1", Journal(), caller=InProcess("us-east-1"))
    ec2.cloud.faults.set(denied=["AssignPrivateIpAddresses"])
    (only,) = target.observe([domain.desire(inputs(1))]).enis
    (failure,) = target.apply([AssignAddresses(only.eni_id, only.subnet_id, "test", 1)])
    assert (failure.reason, failure.retryable) == ("UnauthorizedOperation", False)


def test_enis_of_others_are_foreign(ec2: Any) -> None:
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets["nodes-a"])
    foreign = made["NetworkInterface"]["NetworkInterfaceId"]
    ec2.client.attach_network_interface(
        NetworkInterfaceId=foreign, InstanceId=ec2.instance_id, DeviceIndex=1
    )
    world = over_http(ec2)
    assert [(e.eni_id == foreign, e.owned) for e in world.cloud().enis] == [
        (False, True),
        (True, False),
    ]
    world.reach(27)  # one ENI fewer is left: 18 fit
    (theirs,) = [e for e in world.cloud().enis if e.eni_id == foreign]
    assert theirs.secondaries == ()
    assert sum(len(e.secondaries) for e in world.cloud().enis) == 18


@pytest.mark.parametrize("lost", ["", "CreateTags", "DeleteTags"])
def test_an_eni_of_the_stock_plugin_becomes_ours_when_asked_and_not_before(
    ec2: Any, lost: str
) -> None:
    """Whatever call fails, it is one's or the other's at every moment, and ours in the end."""
    made = ec2.client.create_network_interface(
        SubnetId=ec2.subnets["nodes-a"],
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": stock_tags(ec2)}],
    )
    theirs = made["NetworkInterface"]["NetworkInterfaceId"]
    ec2.client.attach_network_interface(
        NetworkInterfaceId=theirs, InstanceId=ec2.instance_id, DeviceIndex=1
    )
    world = over_http(ec2)
    (found,) = [e for e in world.cloud().enis if e.eni_id == theirs]
    keys = ("eks:eni:owner", "node.k8s.amazonaws.com/createdAt", STOCK_INSTANCE_TAG)
    assert (found.owned, found.is_adoptable, found.stock_tags) == (False, True, keys)
    unasked = domain.plan(domain.desire(world.now), world.cloud())
    assert not [a for a in unasked.actions if isinstance(a, AdoptEni)]
    adopt = AdoptEni(theirs, ((INSTANCE_TAG, ec2.instance_id),), found.stock_tags, "test")
    if lost:
        ec2.cloud.faults.set(denied=[lost])
        assert [f.reason for f in world.target.apply([adopt])] == ["UnauthorizedOperation"]
        (found,) = [e for e in world.cloud().enis if e.eni_id == theirs]
        assert found.owned == (lost == "DeleteTags")
        assert found.owned or found.is_adoptable
        ec2.cloud.faults.clear()
    for _ in range(2):
        assert world.target.apply([adopt]) == ()
    for looks_afresh in (world, over_http(ec2)):
        (found,) = [e for e in looks_afresh.cloud().enis if e.eni_id == theirs]
        assert (found.owned, found.stock, found.stock_tags) == (True, False, ())
    tags = ec2.client.describe_network_interfaces(NetworkInterfaceIds=[theirs])
    left = {t["Key"] for t in tags["NetworkInterfaces"][0]["TagSet"]}
    assert left == {INSTANCE_TAG, CLUSTER_TAG}  # of which cluster's nodes it is, stays true


def test_an_eni_that_shall_not_be_managed_is_not_adoptable(ec2: Any) -> None:
    unmanaged = {"Key": "node.k8s.amazonaws.com/no_manage", "Value": "true"}
    made = ec2.client.create_network_interface(
        SubnetId=ec2.subnets["nodes-a"],
        TagSpecifications=[
            {"ResourceType": "network-interface", "Tags": [*stock_tags(ec2), unmanaged]}
        ],
    )
    ec2.client.attach_network_interface(
        NetworkInterfaceId=made["NetworkInterface"]["NetworkInterfaceId"],
        InstanceId=ec2.instance_id,
        DeviceIndex=1,
    )
    assert not any(e.is_adoptable for e in over_http(ec2).cloud().enis)


def test_calls_are_counted(ec2: Any) -> None:
    target = Ec2(ec2.instance_id, "us-east-1", Journal(), caller=InProcess("us-east-1"))
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
        target = Ec2("i-1", "us-east-1", Journal(), caller=InProcess("us-east-1"))
        pool = domain.desire(inputs(1))
        with pytest.raises(ObserveError, match="EC2"):
            target.observe([pool])
        (failure,) = target.apply([AssignAddresses("eni-1", "subnet-1", "test", 1)])
        assert failure.retryable
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
