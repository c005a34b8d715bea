"""What a node asks of EC2, counted by EC2 over HTTP: every action, reads and writes alike.

The node is driven as the daemon drives it, on a clock that a test moves: a change of demand plans
on the last observation, metadata is read every resync, links come with attachments, and a pass
over the pool is run when it is due.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from typing import Any

import pytest
from builders import document, intent, node
from fakes import (
    FakeConntrack,
    FakeNetlink,
    FakeNft,
    FakeRemains,
    FakeState,
    FakeSurroundings,
    FakeSysctl,
)

from lab.server import IMAGE
from reconciler.core.attachment import IntentState
from reconciler.core.datapath import host_network
from reconciler.core.facts import Node
from reconciler.errors import ObserveError
from reconciler.ipam.cloud import INSTANCE_TAG
from reconciler.ipam.pace import CHECK_S
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode
from reconciler.node.pool_schedule import SHRINK_S
from reconciler.targets.ec2.caller import InProcess
from reconciler.targets.ec2.target import Ec2

HOUR_S = 3600.0


class Metadata:
    """Instance metadata of EC2's instance.

    Attributes:
        is_down: it does not answer.
        is_late: it shows what it has shown before.
    """

    def __init__(self, ec2: Any) -> None:
        self.is_down = self.is_late = False
        self._shown: frozenset[Any] = frozenset()
        self._ec2 = ec2

    def node(self) -> Node:
        if self.is_down:
            raise ObserveError("instance metadata", "it does not answer")
        seen = self._ec2.cloud.instance(self._ec2.instance_id)
        primary = next(e for e in self._here() if e.device_index == 0)
        return node(
            instance_id=self._ec2.instance_id,
            instance_type=seen.instance_type,
            primary_mac=primary.mac,
            vpc_cidrs=tuple(ip_network(c) for c in seen.vpc_cidrs),
            subnet_cidrs=(primary.subnet_cidr,),
        )

    def region(self) -> str:
        return "us-east-1"

    def interfaces(self) -> frozenset[Any]:
        if self.is_late:
            return self._shown
        self._shown = self._read()
        return self._shown

    def _here(self) -> list[Any]:
        return [e for e in self._ec2.cloud.enis() if e.instance_id == self._ec2.instance_id]

    def _read(self) -> frozenset[Any]:
        return frozenset(
            (e.mac, n)
            for e in self._here()
            for n in (*map(host_network, e.addresses[1:]), *e.prefixes, *e.ipv6_prefixes)
        )


class Metered:
    """A node whose EC2 counts what it is asked."""

    def __init__(self, ec2: Any, **parts: Any) -> None:
        self.now = 1000.0
        self.document = document(**parts)
        self.state = FakeState()
        self.netlink = FakeNetlink()
        self.metadata = Metadata(ec2)
        self.hold_links = False
        self.told: set[str] = set()
        self._ec2 = ec2
        self._linked: set[str] = set()
        self._heard_at = self.now
        self._due_at = self.now
        clock = {"clock": lambda: self.now, "caller": InProcess("us-east-1")}
        target = Ec2(ec2.instance_id, "us-east-1", self.state, **clock)
        self.node = LocalNode(
            self.state,
            Environment(
                imds=self.metadata,
                make_ec2=lambda *_: target,
                netlink=self.netlink,
                nft=FakeNft(),
                sysctl=FakeSysctl({}),
                conntrack=FakeConntrack(),
                surroundings=FakeSurroundings(),
                remains=FakeRemains(),
                now=lambda: self.now,
                clock=lambda: self.now,
            ),
        )
        self.plug()

    def plug(self) -> None:
        """Links come and go with attachments."""
        mine = self._ec2.instance_id
        here = {e.mac: e.device_index for e in self._ec2.cloud.enis() if e.instance_id == mine}
        for mac in self._linked - here.keys():
            self.netlink.unplug(mac)
        for mac in here.keys() - self._linked:
            self.netlink.plug(mac, f"eth{here[mac]}")
        self._linked = set(here)

    def pool_pass(self, *, look: bool = False) -> Any:
        outcome = self.node.pool.run(self.document, look=look)
        self.told |= {r.reason for r in outcome.remaining.refusals}
        due_s = self.node.pool.schedule.due_s
        assert due_s is not None
        self._due_at = self.now + due_s
        return outcome

    def work(self) -> None:
        """What an event brings about."""
        if not self.hold_links:
            self.plug()
        if self.node.known.cloud is None:
            self.pool_pass(look=True)
        self.node.kernel_pass(self.document)
        self.pool_pass()
        self.node.kernel_pass(self.document)

    def live(self, seconds: float) -> None:
        """Let time go by."""
        end = self.now + seconds
        resync_s = self.document.reconcile.resync.total_seconds()
        while self.now < end:
            cooling = [c.until for c in self.state.observe().cooling]
            hear_at = self._heard_at + min(resync_s, self.node.pool.schedule.hear_after_s)
            self.now = min([end, self._due_at, hear_at, *cooling])
            if self.now >= hear_at:
                self._heard_at = self.now
                try:
                    if self.node.pool.hear():
                        self.pool_pass(look=True)
                except ObserveError:
                    pass  # the next pass says so
            self.work()

    def start_pod(self, number: int) -> None:
        self.netlink.namespaces.add(f"/run/netns/pod{number}@{number}")
        self.state.put(intent(number))
        self.work()

    def end_pod(self, number: int) -> None:
        self.netlink.lose_namespace(f"/run/netns/pod{number}@{number}")
        self.state.put(intent(number, IntentState.RELEASED))
        self.work()

    @property
    def bound(self) -> int:
        return len(self.state.observe().attachments)

    def spent(self) -> Counter[str]:
        """Return the calls since this was last asked, by action."""
        made = Counter(self._ec2.cloud.faults.calls())
        self._ec2.cloud.faults.reset_calls()
        return made


@pytest.fixture(params=["addresses", "prefixes"])
def metered(ec2: Any, request: pytest.FixtureRequest) -> Metered:
    """A node that has all it needs."""
    pool = {"addresses": {"warm": 4}, "cooldown": "30s"}
    made = Metered(ec2, warmPool=pool, eni={"allocate": request.param})
    made.work()
    made.live(120.0)
    made.spent()
    return made


def test_a_pods_life_costs_no_call(metered: Metered) -> None:
    """One ADD, DEL and cooldown have cost 10 DescribeNetworkInterfaces and 5 DescribeSubnets."""
    metered.start_pod(1)
    assert metered.bound == 1
    metered.live(60.0)
    metered.end_pod(1)
    metered.live(60.0)
    assert metered.bound == 0
    assert metered.state.observe().cooling == ()
    assert metered.spent() == {}


def test_many_pods_in_sequence_cost_no_call_while_the_pool_has_room(metered: Metered) -> None:
    for number in range(20):
        metered.start_pod(number)
        assert metered.bound == 1
        metered.live(1.0)
        metered.end_pod(number)
        metered.live(31.0)
    reads = metered.spent()
    assert {name for name in reads if not name.startswith("Describe")} == set()
    assert sum(reads.values()) <= 6, "what an idle hour costs"


def test_an_idle_hour_costs_at_most_six_reads(metered: Metered) -> None:
    metered.live(HOUR_S)
    reads = metered.spent()
    assert {name for name in reads if not name.startswith("Describe")} == set()
    assert 0 < sum(reads.values()) <= 6


@pytest.mark.parametrize(
    ("kind", "slots", "enis", "allocate"),
    [
        ("m5.large", 9, 1, "addresses"),
        ("m5.large", 9, 2, "addresses"),
        ("m5.large", 9, 3, "addresses"),
        ("m5.4xlarge", 29, 6, "addresses"),
        ("m5.24xlarge", 49, 15, "addresses"),
        ("m5.large", 9, 1, "prefixes"),
        ("m5.large", 9, 2, "prefixes"),
        ("m5.4xlarge", 29, 6, "prefixes"),
    ],
)
def test_a_boot_costs_at_most_two_reads_per_eni(
    ec2: Any, kind: str, slots: int, enis: int, allocate: str
) -> None:
    """A node with one ENI has made four: what ENIs there are and what its type allows must do."""
    if allocate == "prefixes":
        slots *= 16
    if enis > 3 or allocate == "prefixes":
        roomy(ec2, kind)
    warm = {"warm": 0, "minimum": (enis - 1) * slots + 1, "surplus": 0}
    made = Metered(ec2, warmPool={"addresses": warm}, eni={"allocate": allocate})
    made.work()
    made.live(120.0)
    assert len([e for e in ec2.cloud.enis() if e.instance_id == ec2.instance_id]) == enis
    spent = made.spent()
    reads = sum(n for name, n in spent.items() if name.startswith("Describe"))
    assert reads <= 2 * enis, spent
    assert not made.node.pool.schedule.is_unconfirmed, "metadata has confirmed what EC2 answered"


def roomy(ec2: Any, kind: str) -> None:
    """Put an instance of another type into a subnet for thousands of addresses."""
    subnet = ec2.client.create_subnet(
        VpcId=ec2.vpc_id, CidrBlock="10.0.128.0/17", AvailabilityZone="us-east-1a"
    )["Subnet"]["SubnetId"]
    made = ec2.client.run_instances(
        ImageId=IMAGE, InstanceType=kind, MinCount=1, MaxCount=1, SubnetId=subnet
    )
    ec2.instance_id = made["Instances"][0]["InstanceId"]
    ec2.cloud.faults.reset_calls()


def test_a_pod_on_the_next_boot_s_first_look_finds_an_eni_that_an_earlier_one_left(
    ec2: Any,
) -> None:
    """Of ENIs that are attached to nothing a first look does not ask; before one is made it is."""
    left = ec2.client.create_network_interface(
        SubnetId=ec2.subnets["nodes-a"],
        SecondaryPrivateIpAddressCount=5,
        TagSpecifications=[
            {
                "ResourceType": "network-interface",
                "Tags": [{"Key": INSTANCE_TAG, "Value": ec2.instance_id}],
            }
        ],
    )["NetworkInterface"]["NetworkInterfaceId"]
    made = Metered(ec2, warmPool={"addresses": {"warm": 0, "minimum": 12, "surplus": 0}})
    made.spent()
    made.work()
    made.live(10.0)
    enis = [e for e in ec2.cloud.enis() if e.instance_id]
    assert [e.eni_id for e in enis[1:]] == [left]
    assert "CreateNetworkInterface" not in made.spent()


def test_addresses_come_and_go_on_the_last_look_while_metadata_agrees(ec2: Any) -> None:
    """It has cost three reads before and two to confirm it."""
    made = Metered(ec2, warmPool={"addresses": {"warm": 2, "surplus": 0}})
    made.work()
    made.live(60.0)
    made.spent()
    for number in range(6):
        made.start_pod(number)
        made.live(5.0)
    assert made.bound == 6
    spent = made.spent()
    assert set(spent) == {"AssignPrivateIpAddresses"}
    assert not made.node.pool.schedule.is_unconfirmed
    for number in range(6):
        made.end_pod(number)
    made.live(400.0)
    assert made.state.observe().quarantined == ()
    assert set(made.spent()) == {"UnassignPrivateIpAddresses"}
    assert [len(e.addresses) for e in ec2.cloud.enis() if e.instance_id] == [1 + 2]


def test_what_metadata_does_not_show_yet_a_look_confirms(ec2: Any) -> None:
    made = Metered(ec2, warmPool={"addresses": {"warm": 2, "surplus": 0}})
    made.work()
    made.live(60.0)
    made.spent()
    made.metadata.is_late = True
    made.start_pod(1)
    made.live(20.0)
    assert set(made.spent()) == {"AssignPrivateIpAddresses"}
    assert made.node.pool.schedule.is_unconfirmed
    made.live(CHECK_S)
    assert made.spent() == {"DescribeNetworkInterfaces": 2}
    made.metadata.is_late = False
    made.live(60.0)
    assert not made.node.pool.schedule.is_unconfirmed


def test_after_a_growth_addresses_go_back_once_metadata_shows_it(ec2: Any) -> None:
    """They have waited for a look, and then for up to a resync."""
    made = Metered(ec2, warmPool={"addresses": {"warm": 1, "surplus": 0}, "cooldown": "1s"})
    made.work()
    made.live(60.0)
    made.metadata.is_late = True
    for number in range(4):
        made.start_pod(number)
    for number in range(4):
        made.end_pod(number)
    made.live(5.0)
    assert made.node.pool.schedule.is_unconfirmed, "and so the node does not call itself settled"
    assert "UnassignPrivateIpAddresses" not in made.spent()
    assert made.state.observe().quarantined == ()
    made.metadata.is_late = False
    made.live(5.0)
    assert made.node.pool.schedule.is_pending, "not so soon after the growth"
    assert made.state.observe().quarantined == ()
    made.live(SHRINK_S)
    assert not made.node.pool.schedule.is_unconfirmed
    assert made.state.observe().quarantined


def test_a_short_list_that_our_answers_hide_gives_nothing_back(ec2: Any) -> None:
    """Metadata agrees with the answers, but EC2's list lacks them: no look has shown them."""
    made = Metered(ec2, warmPool={"addresses": {"warm": 1, "surplus": 0}, "cooldown": "1s"})
    made.work()
    made.live(120.0)
    for number in range(4):
        made.start_pod(number)
    made.live(5.0)
    ec2.cloud.faults.set(truncateEc2=2)
    made.pool_pass(look=True)
    for number in range(4):
        made.end_pod(number)
    made.live(200.0)
    assert made.state.observe().quarantined == ()
    assert "UnassignPrivateIpAddresses" not in made.spent()
    ec2.cloud.faults.clear()
    made.live(600.0)
    assert made.spent()["UnassignPrivateIpAddresses"] == 1


@pytest.mark.parametrize("code", ["UnauthorizedOperation", "RequestLimitExceeded"])
def test_a_call_that_ec2_refuses_outright_costs_at_most_one_look(ec2: Any, code: str) -> None:
    made = Metered(ec2, warmPool={"addresses": {"warm": 2, "surplus": 0}})
    made.work()
    made.live(60.0)
    action = "AssignPrivateIpAddresses"
    ec2.cloud.faults.set(errors=[{"action": action, "code": code, "count": 10_000}])
    made.spent()
    made.start_pod(1)
    assert made.spent() == {action: 1}
    made.live(600.0)
    spent = made.spent()
    tried = spent[action]
    assert 0 < tried < 600
    assert spent["DescribeNetworkInterfaces"] <= tried
    ec2.cloud.faults.clear()
    made.live(700.0)
    assert len(next(e for e in ec2.cloud.enis() if e.instance_id).addresses) == 4


def test_the_link_serves_pods_before_ec2_calls_its_attachment_done(ec2: Any) -> None:
    pool = {"addresses": {"warm": 0, "minimum": 12, "surplus": 0}}
    made = Metered(ec2, warmPool=pool)
    made.hold_links = True
    made.work()
    assert made.node.pool.in_transition
    made.spent()
    made.hold_links = False
    made.work()
    assert not made.node.pool.in_transition
    for number in range(12):
        made.start_pod(number)
    assert made.bound == 12
    assert made.spent() == {}


def test_what_metadata_shows_is_looked_at_at_once_and_once(ec2: Any) -> None:
    made = Metered(ec2, warmPool={"addresses": {"warm": 4}})
    made.work()
    made.live(120.0)
    (only,) = [e for e in ec2.cloud.enis() if e.instance_id]
    ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=only.eni_id, SecondaryPrivateIpAddressCount=1
    )
    made.spent()
    made.live(61.0)
    assert made.spent() == {"DescribeNetworkInterfaces": 2}, "also one of free ones, by now"
    made.live(300.0)
    assert made.spent() == {}


def test_an_address_that_is_taken_away_is_missed_within_two_minutes(ec2: Any) -> None:
    """Metadata tells it within a resync, and the second observation confirms it."""
    made = Metered(ec2, warmPool={"addresses": {"warm": 2}})
    made.work()
    made.start_pod(1)
    made.live(300.0)
    (held,) = made.state.observe().attachments
    own = str(held.vpc_addresses[0])
    ec2.client.unassign_private_ip_addresses(
        NetworkInterfaceId=held.eni_id, PrivateIpAddresses=[own]
    )
    made.told.clear()
    made.live(60.0)
    assert made.told == set(), "not on one witness's word, nor at once"
    made.live(60.0)
    assert made.told == {"AddressLost"}


def test_metadata_that_is_away_costs_no_storm_of_looks(metered: Metered) -> None:
    metered.metadata.is_down = True
    metered.live(HOUR_S)
    assert sum(metered.spent().values()) <= 3 * HOUR_S / 300.0
    (error,) = metered.pool_pass().errors
    assert "it does not answer" in str(error)


def test_room_in_a_subnet_is_asked_for_while_pods_wait_for_it(ec2: Any) -> None:
    made = Metered(ec2, warmPool={"addresses": {"warm": 0, "surplus": 0}})
    made.work()
    made.live(120.0)
    (only,) = [e for e in ec2.cloud.enis() if e.instance_id]
    free = ec2.client.describe_subnets(SubnetIds=[only.subnet_id])["Subnets"][0]
    others = []
    left = free["AvailableIpAddressCount"]
    while left > 0:
        count = min(left, 50)
        one = ec2.client.create_network_interface(
            SubnetId=only.subnet_id,
            **({"SecondaryPrivateIpAddressCount": count - 1} if count > 1 else {}),
        )
        others.append(one["NetworkInterface"]["NetworkInterfaceId"])
        left -= count
    made.spent()
    made.start_pod(1)
    made.live(200.0)
    assert made.bound == 0
    assert sum(made.spent().values()) <= 5 * 3 + 2
    for eni_id in others:
        ec2.client.delete_network_interface(NetworkInterfaceId=eni_id)
    made.live(200.0)
    assert made.bound == 1
