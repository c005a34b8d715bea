"""What the EC2 target promises, of EC2 over HTTP (the lab's) and of the fake alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from builders import SUBNET, document, eni, inputs, node
from fake_cloud import FakeEc2

from reconciler.domains import eni as domain
from reconciler.domains.inputs import Inputs
from reconciler.engine.converge import Domain, converge
from reconciler.ipam.cloud import (
    CLUSTER_TAG,
    STOCK_INSTANCE_TAG,
    Limits,
    Reserved,
)
from reconciler.ipam.ec2_action import (
    AddEni,
    AssignAddresses,
    AssignPrefixes,
    AttachEni,
    Creation,
    DelegatePrefix,
    DeleteEni,
    DetachEni,
    ReleaseAddresses,
    ReleasePrefixes,
    TieToInstance,
)
from reconciler.targets.ec2.caller import InProcess
from reconciler.targets.ec2.target import Ec2


def stock_tags(ec2: Any) -> list[dict[str, str]]:
    """What the stock plugin writes (amazon-vpc-cni-k8s ``pkg/awsutils/awsutils.go``)."""
    tags = {
        STOCK_INSTANCE_TAG: ec2.instance_id,
        "node.k8s.amazonaws.com/createdAt": "2026-01-01T00:00:00Z",
        CLUSTER_TAG: "prod",
        "eks:eni:owner": "amazon-vpc-cni",
    }
    return [{"Key": key, "Value": value} for key, value in tags.items()]


class Journal:
    """Where creations are written down."""

    def __init__(self) -> None:
        self.records: dict[str, Creation] = {}

    def record(self, creation: Creation) -> None:
        self.records[creation.token] = creation

    def forget(self, creation: Creation) -> None:
        self.records.pop(creation.token, None)


@dataclass
class World:
    target: Any
    now: Inputs
    journal: Journal
    client: Any = None

    def reach(self, minimum: int, **parts: Any) -> Any:
        warm = {"addresses": {"warm": 0, "minimum": minimum, "surplus": 0}}
        creations = tuple(self.journal.records.values())
        ec2 = replace(self.now.ec2, creations=creations, nonce=str(len(creations)))
        now = replace(self.now, document=document(warmPool=warm, **parts), ec2=ec2)
        return converge([Domain("eni", domain.desire, domain.plan, self.target)], now)["eni"]

    def cloud(self, **parts: Any) -> Any:
        wanted = replace(self.now, document=document(**parts))
        return self.target.observe([domain.desire(wanted)])

    def apply(self, *actions: Any) -> list[str]:
        return [f.reason for f in self.target.apply(actions)]

    def reserve(self, **cidrs: str) -> None:
        """Reserve CIDRs of the subnet, by type."""
        if isinstance(self.target, FakeEc2):
            kinds = {kind: (ip_network(cidrs[kind]),) for kind in cidrs}
            self.target.reserved = Reserved(kinds.get("prefix", ()), kinds.get("explicit", ()))
            return
        (only,) = self.cloud().enis
        for kind, cidr in cidrs.items():
            self.client.create_subnet_cidr_reservation(
                SubnetId=only.subnet_id, ReservationType=kind, Cidr=cidr
            )


def over_http(ec2: Any, **options: Any) -> World:
    journal = Journal()
    target = Ec2(ec2.instance_id, "us-east-1", journal, caller=InProcess("us-east-1"), **options)
    mac = next(e.mac for e in ec2.cloud.enis() if e.device_index == 0)
    facts = node(instance_id=ec2.instance_id, primary_mac=mac)
    return World(target, inputs(1, node=facts), journal, ec2.client)


@pytest.fixture(params=["fake", "http"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        only = eni(0, 0, primary=SUBNET[10], delete_on_termination=True)
        journal = Journal()
        yield World(FakeEc2([only], Limits(3, 10), SUBNET, journal=journal), inputs(1), journal)
        return
    yield over_http(request.getfixturevalue("ec2"))


def test_an_instance_is_seen_with_its_limits_and_its_subnet(world: World) -> None:
    cloud = world.cloud()
    assert cloud.limits == Limits(enis=3, addresses_per_eni=10)
    (only,) = cloud.enis
    assert (only.device_index, only.status, only.owned) == (0, "attached", True)
    assert only.primary == ip_address("10.0.1.10")
    assert only.gateway == ip_address("10.0.1.1")
    subnet = cloud.subnets[only.subnet_id]
    assert (subnet.zone, subnet.cidr, subnet.free) == ("us-east-1a", SUBNET, 250)


def test_what_ec2_has_answered_is_told_without_a_look_as_the_next_look_shows_it(
    world: World,
) -> None:
    (only,) = world.cloud().enis
    world.apply(AssignAddresses(only.eni_id, only.subnet_id, "test", 2))
    told, seen = world.target.told(), world.cloud()
    assert told.behind
    assert not seen.behind
    assert (told.enis, told.limits) == (seen.enis, seen.limits)
    assert len(told.enis[0].secondaries) == 2


def test_an_eni_says_which_pod_group_it_was_made_for(world: World) -> None:
    ahead = {"name": "pay", "match": {"namespace": "pay"}, "warmPool": {"addresses": {"warm": 2}}}
    assert world.reach(2, podGroups=[ahead]).settled
    seen = [(e.device_index, e.group, bool(e.secondaries)) for e in world.cloud().enis]
    assert seen == [(0, "", True), (1, "pay", True)]


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
    (failure,) = world.target.apply([AssignAddresses(only.eni_id, only.subnet_id, "test", 10)])
    assert failure.reason == "PrivateIpAddressLimitExceeded"


def test_an_occupied_device_index_is_refused_by_name(world: World) -> None:
    world.reach(10)
    first, second = world.cloud().enis
    (failure,) = world.target.apply([AttachEni(second.eni_id, world.now.node.instance_id, 0, "t")])
    assert failure.reason == "InvalidParameterValue"
    assert world.cloud().enis == (first, second)


def test_what_exceeds_the_instance_is_a_refusal_with_its_numbers(world: World) -> None:
    outcome = world.reach(40)
    assert outcome.remaining.actions == ()
    (refusal,) = outcome.remaining.refusals
    assert refusal.reason == "PoolLimitReached"
    assert "40 addresses wanted" in refusal.message
    assert "3 ENIs x 9 = 27" in refusal.message


def test_tying_twice_is_the_same_as_once(world: World) -> None:
    world.reach(10)
    second = world.cloud().enis[1]
    tie = TieToInstance(second.eni_id, second.attachment_id or "", "test")
    assert world.target.apply([tie, tie]) == ()
    assert world.cloud().enis[1].delete_on_termination


def test_prefixes_come_go_and_count_as_one_slot_each(world: World) -> None:
    prefixes = {"eni": {"allocate": "prefixes"}}
    assert world.cloud(**prefixes).subnets[world.cloud().enis[0].subnet_id].blocks == 14
    outcome = world.reach(40, **prefixes)
    assert outcome.settled, outcome
    (only,) = world.cloud().enis
    assert [p.prefixlen for p in only.prefixes] == [28, 28, 28]
    assert len(only.pod_addresses) == 48
    assert world.apply(ReleasePrefixes(only.eni_id, only.prefixes[1:], "test")) == []
    assert world.cloud().enis[0].prefixes == only.prefixes[:1]
    again = AssignPrefixes(only.eni_id, only.subnet_id, "test", units=only.prefixes[1:2])
    assert world.apply(again) == []
    assert world.cloud().enis[0].prefixes == only.prefixes[:2]


def test_prefixes_come_from_what_is_reserved_for_them_though_nothing_else_is_free(
    world: World,
) -> None:
    """What EC2 counts as free has none of it, and is less than a block here."""
    world.reserve(prefix="10.0.1.128/25", explicit="10.0.1.32/27")
    taken = [SUBNET[n] for n in (*range(16, 32), *range(64, 128))]
    if isinstance(world.target, FakeEc2):
        world.target._taken.update(taken)
    else:
        (only,) = world.cloud().enis
        world.client.create_network_interface(
            SubnetId=only.subnet_id,
            PrivateIpAddresses=[{"PrivateIpAddress": str(a)} for a in taken],
        )
    prefixes = {"eni": {"allocate": "prefixes"}}
    (subnet,) = world.cloud(**prefixes).subnets.values()
    assert (subnet.blocks, subnet.blocks_apart) == (7, True), "the last has the broadcast address"
    outcome = world.reach(64, **prefixes)
    assert outcome.settled, outcome
    (only,) = world.cloud().enis
    home = ip_network("10.0.1.128/25")
    assert [p.subnet_of(home) for p in only.prefixes] == [True] * 4
    assert only.secondaries == ()


def test_what_is_reserved_for_those_who_name_it_is_no_source_of_addresses(world: World) -> None:
    world.reserve(explicit="10.0.1.16/28")
    assert world.reach(18).settled
    reserved = ip_network("10.0.1.16/28")
    held = {a for e in world.cloud().enis for a in (e.primary, *e.secondaries)}
    assert (len(held), [a for a in held if a in reserved]) == (20, [])
    prefixes = {"eni": {"allocate": "prefixes"}}
    (subnet,) = world.cloud(**prefixes).subnets.values()
    (_, *others) = SUBNET.subnets(new_prefix=28)
    used = {*held, SUBNET[-1]}
    free = [n for n in others if n != reserved and not any(a in n for a in used)]
    assert (subnet.blocks, subnet.blocks_apart) == (len(free), False)


def test_addresses_are_given_back_by_name(world: World) -> None:
    world.reach(9)
    (only,) = world.cloud().enis
    gone = only.secondaries[5:]
    assert world.apply(ReleaseAddresses(only.eni_id, gone, "test")) == []
    assert world.cloud().enis[0].secondaries == only.secondaries[:5]
    again = AssignAddresses(only.eni_id, only.subnet_id, "test", units=gone[:1])
    assert world.apply(again) == []
    assert world.cloud().enis[0].secondaries == only.secondaries[:6]


def test_an_eni_is_detached_then_deleted(world: World) -> None:
    world.reach(18)
    second = world.cloud().enis[1]
    assert world.apply(DeleteEni(second.eni_id, "test")) == ["InvalidParameterValue"]
    assert world.apply(DetachEni(second.eni_id, second.attachment_id or "", "test")) == []
    if isinstance(world.target, FakeEc2):
        world.target.settle()
    assert world.apply(DeleteEni(second.eni_id, "test")) == []
    assert [e.device_index for e in world.cloud().enis] == [0]


def test_a_creation_is_written_down_before_the_call_and_taken_out_if_it_was_refused(
    world: World,
) -> None:
    world.reach(18)
    assert len(world.journal.records) == 1
    (action,) = world.journal.records.values()
    greedy = replace(action, token="t2", addresses=999, device_index=2)
    add = AddEni(world.now.node.instance_id, greedy, "test")
    assert world.apply(add) == ["InsufficientFreeAddressesInSubnet"]
    assert set(world.journal.records) == {action.token}


def test_what_failed_and_what_succeeded_can_be_asked_for_once(world: World) -> None:
    (only,) = world.cloud().enis
    world.target.drain()
    world.apply(AssignAddresses(only.eni_id, only.subnet_id, "test", 1))
    world.apply(AssignAddresses(only.eni_id, only.subnet_id, "test", 99))
    failures, successes = world.target.drain()
    assert [(f.scope, f.code) for f in failures] == [
        ("AssignPrivateIpAddresses", "PrivateIpAddressLimitExceeded")
    ]
    assert successes == ("AssignPrivateIpAddresses",)
    assert world.target.drain() == ((), ())


def test_security_groups_and_idle_timeouts_follow_the_primarys_in_one_call_each(
    world: World,
) -> None:
    world.reach(12)
    primary, second = world.cloud().enis
    more, timeouts = (*primary.security_groups, "sg-9"), (600, 120, 0)
    if isinstance(world.target, FakeEc2):
        world.target.enis[0] = replace(primary, security_groups=more, idle_timeouts=timeouts)
    else:
        client = world.client
        groups = client.describe_security_groups()["SecurityGroups"]
        more = tuple(sorted(g["GroupId"] for g in groups))
        specification = {"TcpEstablishedTimeout": 600, "UdpStreamTimeout": 120}
        client.modify_network_interface_attribute(
            NetworkInterfaceId=primary.eni_id, Groups=list(more)
        )
        client.modify_network_interface_attribute(
            NetworkInterfaceId=primary.eni_id, ConnectionTrackingSpecification=specification
        )
    before = world.target.calls["ModifyNetworkInterfaceAttribute"]
    for _ in range(2):
        assert world.reach(12).settled
    assert world.target.calls["ModifyNetworkInterfaceAttribute"] - before == 2
    after = next(e for e in world.cloud().enis if e.eni_id == second.eni_id)
    assert (after.security_groups, after.idle_timeouts) == (tuple(sorted(more)), timeouts)


# -- prefixes that are not counted --------------------------------------------------------


@pytest.fixture
def ipv6(world: World, request: pytest.FixtureRequest) -> World:
    """The same, in a subnet with an IPv6 CIDR block."""
    if not isinstance(world.target, FakeEc2):
        ec2 = request.getfixturevalue("ec2")
        block = ec2.client.associate_vpc_cidr_block(
            VpcId=ec2.vpc_id, AmazonProvidedIpv6CidrBlock=True
        )["Ipv6CidrBlockAssociation"]["Ipv6CidrBlock"]
        cidr = block.replace("/56", "/64")
        ec2.client.associate_subnet_cidr_block(SubnetId=ec2.subnets["nodes-a"], Ipv6CidrBlock=cidr)
    return world


def test_a_subnet_says_which_families_it_has(world: World) -> None:
    if isinstance(world.target, FakeEc2):
        world.target.families = ("ipv4",)
    assert {s.families for s in world.cloud().subnets.values()} == {("ipv4",)}


def test_every_eni_of_a_dual_stack_node_gets_one_prefix(ipv6: World) -> None:
    both = {"families": ["ipv4", "ipv6"]}
    outcome = ipv6.reach(12, **both)
    assert outcome.settled, outcome.errors
    cloud = ipv6.cloud(**both)
    assert {s.families for s in cloud.subnets.values()} == {("ipv4", "ipv6")}
    assert [[n.prefixlen for n in e.ipv6_prefixes] for e in cloud.enis] == [[80], [80]]
    assert len({n for e in cloud.enis for n in e.ipv6_prefixes}) == 2
    assert ipv6.reach(12, **both).plan.actions == ()


def test_a_node_of_ipv6_alone_takes_a_prefix_and_no_address(ipv6: World) -> None:
    assert ipv6.reach(24, families=["ipv6"]).settled
    (only,) = ipv6.cloud(families=["ipv6"]).enis
    assert (only.secondaries, only.prefixes) == ((), ())
    assert [n.prefixlen for n in only.ipv6_prefixes] == [80]
    assert ipv6.reach(24, families=["ipv6"]).plan.actions == ()


def test_where_the_primary_may_not_serve_one_eni_is_made_with_a_prefix(ipv6: World) -> None:
    parts = {"families": ["ipv6"], "eni": {"usePrimary": False}}
    outcome = ipv6.reach(24, **parts)
    assert outcome.settled, outcome.errors
    assert [str(a).count("--ipv6-prefix-count 1") for a in outcome.plan.actions] == [1]
    first, second = ipv6.cloud(**parts).enis
    assert (first.ipv6_prefixes, second.secondaries) == ((), ())
    assert [n.prefixlen for n in second.ipv6_prefixes] == [80]
    assert ipv6.reach(24, **parts).plan.actions == ()


def test_a_prefix_that_is_named_is_the_one_that_comes(ipv6: World) -> None:
    (only,) = ipv6.cloud(families=["ipv6"]).enis
    assert ipv6.apply(DelegatePrefix(only.eni_id, only.subnet_id, "test")) == []
    (given,) = ipv6.cloud(families=["ipv6"]).enis[0].ipv6_prefixes
    (further,) = list(given.supernet().subnets())[1:] or [given]
    named = further if further != given else next(iter(given.supernet().subnets()))
    assert ipv6.apply(DelegatePrefix(only.eni_id, only.subnet_id, "test", named)) == []
    assert set(ipv6.cloud(families=["ipv6"]).enis[0].ipv6_prefixes) == {given, named}


def test_without_a_block_in_the_subnet_a_prefix_is_refused(world: World) -> None:
    if isinstance(world.target, FakeEc2):
        world.target.families = ("ipv4",)
    (only,) = world.cloud().enis
    asked = DelegatePrefix(only.eni_id, only.subnet_id, "test")
    assert world.apply(asked) == ["InvalidParameterValue"]
    # So it is not asked for; the reason is said instead.
    outcome = world.reach(0, families=["ipv6"])
    assert outcome.plan.actions == ()
    reasons = {r.reason for r in outcome.remaining.refusals}
    assert "SubnetWithoutFamily" in reasons
