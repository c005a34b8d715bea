"""Each action that the IAM policies allow, on each kind of resource, is needed.

A life of a node's ENIs is led against EC2 that evaluates the policies as they are shipped: it
grows, changes, shrinks, takes an ENI over and collects a leaked one. Then again with one action
less, and must stop at the step that needs it, refused by name.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import pytest
from deploy.programs import DEPLOY
from targets.test_ec2_contract import World, over_http, stock_tags

from lab.ec2.policy import Statement, listed
from reconciler.core.facts import Eni
from reconciler.egress.observation import Question
from reconciler.egress.source import Failure
from reconciler.errors import ObserveError
from reconciler.ipam.cloud import CREATED_TAG, INSTANCE_TAG
from reconciler.ipam.ec2_action import (
    AdoptEni,
    DelegatePrefix,
    DeleteEni,
    DetachEni,
    Ec2Action,
    ReleaseAddresses,
    SetSecurityGroups,
)
from reconciler.targets.ec2.caller import InProcess
from reconciler.targets.ec2.calls import Calls
from reconciler.targets.ec2.rights import Rights
from reconciler.targets.ec2.sources import VpcSources
from reconciler.targets.ec2.way import Ways


@dataclass(frozen=True, slots=True)
class Grant:
    """One action of one statement, on one of its resources."""

    sid: str
    action: str
    resource: str

    def __str__(self) -> str:
        kind = self.resource.rpartition(":")[2].removesuffix("/*")
        return f"{self.sid} {self.action.removeprefix('ec2:')} {kind}"


def shipped() -> list[dict[str, Any]]:
    files = sorted(DEPLOY.glob("iam-policy*.json"))
    return [s for f in files for s in json.loads(f.read_text())["Statement"]]


def grants() -> list[Grant]:
    return [
        Grant(s["Sid"], action, resource)
        for s in shipped()
        for action in listed(s["Action"])
        for resource in listed(s["Resource"])
    ]


def without(grant: Grant) -> list[Statement]:
    """Return the policies without one grant."""
    left: list[Statement] = []
    for statement in copy.deepcopy(shipped()):
        if statement["Sid"] != grant.sid:
            left.append(statement)
            continue
        actions, resources = listed(statement["Action"]), listed(statement["Resource"])
        others = [a for a in actions if a != grant.action]
        rest = [r for r in resources if r != grant.resource]
        if others:
            left.append({**statement, "Action": others, "Resource": resources})
        if rest:
            left.append({**statement, "Action": [grant.action], "Resource": rest})
    return left


STEPS = {
    "look": {
        "Look DescribeInstanceTypes *",
        "Look DescribeNetworkInterfaces *",
        "Look DescribeSubnets *",
    },
    "reservations": {"LookAtReservations GetSubnetCidrReservations *"},
    "grow": {
        "AddressesOfNodes AssignPrivateIpAddresses network-interface",
        "CreateWithOurTag CreateNetworkInterface network-interface",
        "CreateInSubnets CreateNetworkInterface subnet",
        "CreateInSubnets CreateNetworkInterface security-group",
        "TagWhatIsCreated CreateTags network-interface",
        "ChangeWhatHasOurTag AttachNetworkInterface network-interface",
        "ChangeWhatHasOurTag ModifyNetworkInterfaceAttribute network-interface",
        "ToAndFromInstances AttachNetworkInterface instance",
        "AttributesNameTheseToo ModifyNetworkInterfaceAttribute instance",
    },
    "groups": {"AttributesNameTheseToo ModifyNetworkInterfaceAttribute security-group"},
    "release": {"AddressesOfNodes UnassignPrivateIpAddresses network-interface"},
    "ipv6": {"AddressesOfNodes AssignIpv6Addresses network-interface"},
    "detach": {
        "ChangeWhatHasOurTag DetachNetworkInterface network-interface",
        "ToAndFromInstances DetachNetworkInterface instance",
    },
    "delete": {"ChangeWhatHasOurTag DeleteNetworkInterface network-interface"},
    "sources": {
        "LookAtSources DescribeManagedPrefixLists *",
        "LookAtSources DescribeRouteTables *",
        "LookAtSources DescribeVpcPeeringConnections *",
        "LookAtSources GetManagedPrefixListEntries *",
    },
    "diagnose": {
        "LookForPeople DescribeInstances *",
        "LookForPeople DescribeNetworkAcls *",
        "LookForPeople DescribeSecurityGroups *",
    },
    "adopt": {
        "TagWhatHasTheStockPluginsTag CreateTags network-interface",
        "RemoveTheStockPluginsTags DeleteTags network-interface",
    },
}
"""What each step of a life needs that no earlier one did."""


class Refused(Exception):  # noqa: N818 - that is what happened
    """A step was refused."""


class Life:
    """A node's ENIs, from the first look on.

    Args:
        ec2: with an ENI of the stock plugin's that is attached.
        adopted: its id.
    """

    def __init__(self, ec2: Any, adopted: str) -> None:
        self.world: World = over_http(ec2)
        self._adopted, self._vpc_id = adopted, ec2.vpc_id
        made = ec2.client.create_managed_prefix_list(
            PrefixListName="corp",
            AddressFamily="IPv4",
            MaxEntries=5,
            Entries=[{"Cidr": "10.200.0.0/16"}],
        )
        self._prefix_list = made["PrefixList"]["PrefixListId"]

    def _do(self, *actions: Ec2Action) -> None:
        for failure in self.world.target.apply(actions):
            assert failure.reason == "UnauthorizedOperation", failure
            raise Refused(str(failure))

    def _eni(self, device_index: int) -> Eni:
        (found,) = (e for e in self.world.target.told().enis if e.device_index == device_index)
        return found

    def lead(self) -> Iterator[str]:
        """Yield the name of each step before it is taken."""
        world = self.world
        yield "look"
        try:
            unread = world.cloud().unread
        except ObserveError as error:
            raise Refused(str(error)) from error
        if unread:
            raise Refused(str(unread))
        yield "reservations"
        seen = world.cloud(eni={"allocate": "prefixes"}).subnets.values()
        if unknown := [s.reservations_unknown for s in seen if s.reservations_unknown]:
            raise Refused(str(unknown))
        yield "grow"
        outcome = world.reach(12)
        if outcome.errors:
            raise Refused(str(outcome.errors))
        first, second = self._eni(0), self._eni(2)
        yield "groups"
        self._do(SetSecurityGroups(second.eni_id, second.security_groups, "test"))
        yield "release"
        self._do(ReleaseAddresses(first.eni_id, first.secondaries[:1], "test"))
        yield "ipv6"
        self._do(DelegatePrefix(first.eni_id, first.subnet_id, "test"))
        yield "detach"
        self._do(DetachEni(second.eni_id, second.attachment_id or "", "test"))
        yield "delete"
        self._do(DeleteEni(second.eni_id, "test"))
        yield "sources"
        self._look_at_sources(first.subnet_id)
        yield "diagnose"
        rights = Rights(Calls(InProcess("us-east-1"), time.monotonic))
        if isinstance(told := rights.metadata_options(world.now.node.instance_id), str):
            raise Refused(told)
        peer = IPv4Address("192.0.2.1")
        way = Ways(Calls(InProcess("us-east-1"), time.monotonic)).look(first.eni_id, peer)
        if way.unread:
            raise Refused(str(way.unread))
        yield "adopt"
        ours = ((INSTANCE_TAG, world.now.node.instance_id), (CREATED_TAG, "2026-01-01"))
        obsolete = ("eks:eni:owner", "node.k8s.amazonaws.com/instance_id")
        self._do(AdoptEni(self._adopted, ours, obsolete, "test"))

    def _look_at_sources(self, subnet_id: str) -> None:
        sources = VpcSources(Calls(InProcess("us-east-1"), time.monotonic))
        names = ("@peering", "@transit", self._prefix_list)
        asked = Question(names, self._vpc_id, frozenset({subnet_id}))
        failed = [f for f in sources.look(asked).values() if isinstance(f, Failure)]
        if failed:
            raise Refused(str(failed))


def led(life: Life) -> tuple[list[str], str]:
    """Return the steps that were begun, and why the last one was refused; "" if none was."""
    steps: list[str] = []
    try:
        steps.extend(life.lead())
    except Refused as refusal:
        return steps, str(refusal)
    return steps, ""


@pytest.fixture
def life(ec2: Any) -> Life:
    vpc = ec2.client.associate_vpc_cidr_block(VpcId=ec2.vpc_id, AmazonProvidedIpv6CidrBlock=True)[
        "Ipv6CidrBlockAssociation"
    ]["Ipv6CidrBlock"]
    ec2.client.associate_subnet_cidr_block(
        SubnetId=ec2.subnets["nodes-a"], Ipv6CidrBlock=vpc.replace("/56", "/64")
    )
    adopted = ec2.client.create_network_interface(
        SubnetId=ec2.subnets["nodes-a"],
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": stock_tags(ec2)}],
    )["NetworkInterface"]["NetworkInterfaceId"]
    ec2.client.attach_network_interface(
        NetworkInterfaceId=adopted, InstanceId=ec2.instance_id, DeviceIndex=1
    )
    return Life(ec2, adopted)


def test_the_policies_allow_a_whole_life(ec2: Any, life: Life) -> None:
    ec2.cloud.faults.set(policy=shipped())
    assert led(life) == ([*STEPS], "")


def test_each_action_has_a_step_that_needs_it() -> None:
    assert {str(g) for g in grants()} == set[str]().union(*STEPS.values())


@pytest.mark.parametrize("grant", grants(), ids=str)
def test_without_an_action_the_step_that_needs_it_is_refused(
    grant: Grant, ec2: Any, life: Life
) -> None:
    ec2.cloud.faults.set(policy=without(grant))
    steps, why = led(life)
    assert str(grant) in STEPS[steps[-1]], f"refused at {steps[-1]}: {why}"
    assert grant.action.removeprefix("ec2:") in why
