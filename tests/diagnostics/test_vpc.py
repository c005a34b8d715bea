"""The way through the VPC: each reason why a peered host is out of reach, by itself."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from reconciler.diagnostics.vpc import (
    Acl,
    AclEntry,
    Flow,
    Peering,
    Permit,
    SecurityGroup,
    Side,
    VpcRoute,
    VpcTable,
    Way,
    answered_by,
    follow,
)


def net(text: str) -> Any:
    return ip_network(text)


def address(text: str) -> Any:
    return ip_address(text)


ALL = Permit(-1, None, (net("0.0.0.0/0"),))
OPEN = SecurityGroup("sg-a", (ALL,), (ALL,))
FREE = Acl(
    "acl-a",
    (
        AclEntry(100, True, True, -1, net("0.0.0.0/0"), None),
        AclEntry(100, False, True, -1, net("0.0.0.0/0"), None),
    ),
)
TO_PEER = VpcRoute(net("10.100.0.0/16"), "pcx-1", True)
LOCAL = VpcRoute(net("10.0.0.0/16"), "local", True)
OURS = Side("eni-1", "subnet-a", "vpc-1", (OPEN,), FREE, VpcTable("rtb-a", (LOCAL, TO_PEER)))
BACK = VpcTable("rtb-b", (VpcRoute(net("10.0.0.0/16"), "pcx-1", True),))
FAR = Side("eni-9", "subnet-z", "vpc-2", (replace(OPEN, group_id="sg-z"),), FREE, BACK)
PEERING = Peering(
    "pcx-1", "active", ("vpc-1", "vpc-2"), (net("10.0.0.0/16"), net("10.100.0.0/16"))
)
WELL = Way(OURS, FAR, (PEERING,))
FLOW = Flow(address("10.0.1.12"), address("10.100.0.10"), 6, 443)


def stops(way: Way, flow: Flow = FLOW, *, inbound: bool = False) -> list[str]:
    return [s.text for s in follow(flow, way, inbound=inbound) if s.stops]


def unsure(way: Way, flow: Flow = FLOW, *, inbound: bool = False) -> list[str]:
    return [s.text for s in follow(flow, way, inbound=inbound) if s.stops is None]


def test_where_nothing_stands_in_the_way_every_question_has_its_answer() -> None:
    steps = follow(FLOW, WELL)
    assert [s.about for s in steps] == [
        *("security groups", "network ACL", "route"),
        *("network ACL", "security groups"),
        *("network ACL", "answer route", "network ACL"),
    ]
    assert all(s.stops is False for s in steps)
    assert steps[2].text == "rtb-a of subnet-a sends 10.100.0.0/16 to pcx-1, an active peering"


WEB = Permit(6, (443, 443), (net("10.0.0.0/16"),))


def far(**fields: Any) -> Way:
    return replace(WELL, peer=replace(FAR, **fields))


def ours(**fields: Any) -> Way:
    return replace(WELL, ours=replace(OURS, **fields))


def table(*routes: VpcRoute) -> VpcTable:
    return VpcTable("rtb-x", routes)


def acl(*entries: AclEntry) -> Acl:
    return Acl("acl-x", entries)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (
            ours(groups=(SecurityGroup("sg-a", (), ()),)),
            "none of sg-a of eni-1 lets tcp port 443 to 10.100.0.10 out",
        ),
        (
            far(groups=(SecurityGroup("sg-z", (replace(WEB, ports=(80, 80)),), (ALL,)),)),
            "none of sg-z of eni-9 lets tcp port 443 from 10.0.1.12 in",
        ),
        (
            ours(table=table(LOCAL)),
            "rtb-x of subnet-a has no route to 10.100.0.10: the VPC drops it",
        ),
        (
            ours(table=table(LOCAL, replace(TO_PEER, is_active=False))),
            "rtb-x of subnet-a sends 10.100.0.0/16 to pcx-1, which is a black hole: its target is "
            "gone",
        ),
        (
            replace(WELL, peerings=(replace(PEERING, status="pending-acceptance"),)),
            "rtb-a of subnet-a sends 10.100.0.0/16 to pcx-1, which is pending-acceptance and not "
            "active",
        ),
        (
            replace(WELL, peerings=(replace(PEERING, cidrs=(net("10.0.0.0/16"),)),)),
            "rtb-a of subnet-a sends 10.100.0.0/16 to pcx-1, whose VPCs have 10.0.0.0/16 and not "
            "10.100.0.10: a peering leads no further",
        ),
        (
            far(table=table()),
            "rtb-x of subnet-z has no route to 10.0.1.12: the VPC drops it",
        ),
        (
            far(acl=acl(AclEntry(50, False, False, 6, net("10.0.0.0/8"), (443, 443)))),
            "acl-x of subnet-z, rule 50, does not let it in",
        ),
        (
            ours(acl=acl(*FREE.entries[:1])),
            "acl-x of subnet-a has no rule that lets the answer in",
        ),
        (
            ours(table=table(LOCAL, VpcRoute(net("0.0.0.0/0"), "igw-1", True))),
            "rtb-x of subnet-a sends 0.0.0.0/0 to igw-1, and 10.0.1.12 has no public address: "
            "give it an Elastic IP, exclude less from SNAT if it is a pod's own, or route to a "
            "NAT gateway",
        ),
    ],
)
def test_each_usual_reason_stops_it_by_itself(way: Way, said: str) -> None:
    assert said in stops(way)


def test_the_first_rule_of_an_acl_that_matches_decides() -> None:
    deny = AclEntry(90, True, False, 6, net("10.100.0.0/16"), (443, 443))
    allow = AclEntry(100, True, True, -1, net("0.0.0.0/0"), None)
    rest = FREE.entries[1]
    assert stops(ours(acl=acl(allow, deny, rest)))
    assert not stops(ours(acl=acl(allow, replace(deny, number=110), rest)))
    assert not stops(ours(acl=acl(allow, replace(deny, ports=(80, 80)), rest)))
    # An answer goes to a port that the client chose: of some of them nothing is certain.
    some = acl(*FREE.entries[:1], AclEntry(90, False, True, 6, net("0.0.0.0/0"), (1024, 40000)))
    assert unsure(ours(acl=some)) == [
        "acl-x of subnet-a, rule 90, lets the answer in for ports 1024-40000 of 32768-60999"
    ]


def test_the_longest_prefix_decides_and_a_prefix_list_makes_it_unsure() -> None:
    hole = VpcRoute(net("10.100.0.10/32"), "eni-7", False)
    assert stops(ours(table=table(LOCAL, TO_PEER, hole)))
    assert stops(ours(table=table(hole, TO_PEER, LOCAL)))
    listed = VpcRoute("pl-1", "tgw-1", True)
    (text,) = unsure(ours(table=table(LOCAL, TO_PEER, listed)))
    assert text.endswith("to pcx-1, an active peering, unless pl-1 has it")


def test_what_refers_to_a_group_counts_if_the_other_end_is_in_it() -> None:
    by_group = SecurityGroup("sg-z", (Permit(6, (443, 443), groups=("sg-a",)),), (ALL,))
    assert not stops(far(groups=(by_group,)))
    other = SecurityGroup("sg-z", (Permit(6, (443, 443), groups=("sg-b",)),), (ALL,))
    assert stops(far(groups=(other,)))
    unknown = replace(far(groups=(by_group,)), ours=replace(OURS, groups=None))
    assert any("if 10.0.1.12 is in sg-a" in text for text in unsure(unknown))


def test_without_a_port_what_depends_on_it_is_not_known() -> None:
    flow = replace(FLOW, port=None)
    way = far(groups=(SecurityGroup("sg-z", (WEB,), (ALL,)),))
    (text,) = unsure(way, flow)
    assert text == "sg-z of eni-9 may let it in: for ports 443; name one by --port"
    assert not unsure(WELL, flow)


def test_a_peer_that_cannot_be_described_is_named_with_what_to_look_at_there() -> None:
    alone = replace(WELL, peer=None)
    steps = follow(FLOW, alone)
    assert [s.about for s in steps] == [
        *("security groups", "network ACL", "route", "network ACL", "peer"),
    ]
    assert steps[-1].text == (
        "no ENI with 10.100.0.10 can be described from here, so its security groups, network ACL "
        "and route back to 10.0.1.12 must be looked at where it is"
    )


def test_a_connection_that_the_peer_opens_is_followed_the_other_way() -> None:
    back = Flow(FLOW.destination, FLOW.source, 6, 8080)
    assert not stops(WELL, back, inbound=True)
    closed = ours(groups=(SecurityGroup("sg-a", (), (ALL,)),))
    assert stops(closed, back, inbound=True) == [
        "none of sg-a of eni-1 lets tcp port 8080 from 10.100.0.10 in"
    ]
    (text,) = stops(ours(table=table(LOCAL)), back, inbound=True)
    assert text == "rtb-x of subnet-a has no route to 10.100.0.10: the VPC drops it"


def test_what_was_not_read_is_not_known_and_stops_nothing() -> None:
    unread = replace(WELL, ours=replace(OURS, groups=None, acl=None, table=None), peerings=())
    assert not stops(unread)
    assert len(unsure(unread)) == 5


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("169.254.169.254", "169.254.169.254 is a link-local address of the host, "),
        ("10.0.0.2", "10.0.0.2 is Amazon's resolver in this VPC: no security group, "),
        ("10.0.0.3", ""),
        ("10.100.0.2", ""),
    ],
)
def test_what_the_vpc_itself_answers_is_asked_of_nothing(where: str, said: str) -> None:
    found = answered_by(address(where), [net("10.0.0.0/16"), net("100.64.0.0/16")])
    assert found.startswith(said)
    assert bool(found) is bool(said)
