"""What EC2 answers of peerings, route tables and prefix lists, read with distrust."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from reconciler.egress.observation import Question
from reconciler.egress.source import Failure, Look
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import Calls
from reconciler.targets.ec2.sources import MAX_PEERINGS, VpcSources

VPC = "vpc-1"
PEERING = {
    "VpcPeeringConnectionId": "pcx-1",
    "Status": {"Code": "active"},
    "RequesterVpcInfo": {"VpcId": VPC, "CidrBlock": "10.0.0.0/16"},
    "AccepterVpcInfo": {
        "VpcId": "vpc-2",
        "CidrBlock": "10.100.0.0/16",
        "CidrBlockSet": [{"CidrBlock": "10.100.0.0/16"}, {"CidrBlock": "10.101.0.0/16"}],
    },
    "Tags": [{"Key": "Name", "Value": 'shared"\nservices'}],
}
TURNED = {
    **PEERING,
    "VpcPeeringConnectionId": "pcx-2",
    "RequesterVpcInfo": {"VpcId": "vpc-3", "CidrBlock": "10.102.0.0/16"},
    "AccepterVpcInfo": {"VpcId": VPC, "CidrBlock": "10.0.0.0/16"},
    "Tags": [],
}
LIST = {
    "PrefixListId": "pl-0a1b2c3d",
    "PrefixListName": "corp",
    "AddressFamily": "IPv4",
    "Version": 3,
    "State": "modify-complete",
}


def route(to: str, state: str = "active", **target: str) -> dict[str, str]:
    key = "DestinationPrefixListId" if to.startswith("pl-") else "DestinationCidrBlock"
    return {key: to, "State": state, **target}


TABLE = {
    "RouteTableId": "rtb-1",
    "Associations": [{"SubnetId": "subnet-a", "Main": False}],
    "Routes": [
        route("10.0.0.0/16", GatewayId="local"),
        route("172.16.0.0/12", TransitGatewayId="tgw-1"),
        route("192.168.0.0/16", GatewayId="vgw-1"),
        route("192.168.7.0/24", state="blackhole", VpcPeeringConnectionId="pcx-9"),
        route("0.0.0.0/0", NatGatewayId="nat-1"),
        route("pl-0a1b2c3d", TransitGatewayId="tgw-1"),
        route("pl-63a5400a", GatewayId="vpce-1"),
        {"DestinationIpv6CidrBlock": "::/0", "State": "active", "TransitGatewayId": "tgw-1"},
    ],
}
MAIN = {**TABLE, "RouteTableId": "rtb-0", "Associations": [{"Main": True}]}


class Ec2:
    """Answers by action; a filter on one side of a peering, or on subnets, is applied."""

    def __init__(self) -> None:
        self.peerings: list[Any] = [PEERING, TURNED]
        self.tables: list[Any] = [TABLE, MAIN]
        self.lists: list[Any] = [LIST]
        self.entries: list[Any] = [{"Cidr": "10.200.0.0/16", "Description": "office"}]
        self.errors: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.change: Callable[[str, Any], Any] = lambda _, answer: answer

    def __call__(self, action: str, _method: str, arguments: dict[str, Any]) -> Any:
        self.asked[action] += 1
        if code := self.errors.get(action):
            raise Ec2CallError(action, code, "test", refused=True)
        return self.change(action, self._answer(action, arguments))

    def _answer(self, action: str, arguments: dict[str, Any]) -> Any:
        filters = {f["Name"]: f["Values"] for f in arguments.get("Filters", ())}
        match action:
            case "DescribeVpcPeeringConnections":
                assert filters.pop("status-code") == ["active"]
                ((name, (vpc,)),) = filters.items()
                side = "RequesterVpcInfo" if name.startswith("requester") else "AccepterVpcInfo"
                found = [p for p in self.peerings if p.get(side, {}).get("VpcId") in (vpc, None)]
                return {"VpcPeeringConnections": found}
            case "DescribeRouteTables":
                if filters.get("association.main") == ["true"]:
                    found = [t for t in self.tables if t["Associations"][0]["Main"]]
                else:
                    wanted = filters["association.subnet-id"]
                    of = [(t["Associations"][0].get("SubnetId"), t) for t in self.tables]
                    found = [t for subnet, t in of if subnet in wanted]
                return {"RouteTables": found}
            case "DescribeManagedPrefixLists":
                wanted = filters["prefix-list-id"]
                return {"PrefixLists": [p for p in self.lists if p["PrefixListId"] in wanted]}
            case _:
                assert arguments["PrefixListId"] == LIST["PrefixListId"]
                return {"Entries": self.entries}


@pytest.fixture
def ec2() -> Ec2:
    return Ec2()


@pytest.fixture
def sources(ec2: Ec2) -> VpcSources:
    return VpcSources(Calls(ec2, lambda: 0.0))


def ask(sources: VpcSources, *names: str, subnets: tuple[str, ...] = ("subnet-a",)) -> Any:
    answers = sources.look(Question(names, VPC, frozenset(subnets)))
    assert list(answers) == list(names)
    return [answers[n] for n in names]


def shown(answer: Look | Failure) -> dict[str, str]:
    assert isinstance(answer, Look), answer
    return {str(e.network): e.origin for e in answer.entries}


def test_a_peering_is_read_from_either_side_with_all_cidr_blocks_of_the_other(
    sources: VpcSources, ec2: Ec2
) -> None:
    (answer,) = ask(sources, "@peering")
    assert shown(answer) == {
        "10.100.0.0/16": 'pcx-1, "shared  services"',
        "10.101.0.0/16": 'pcx-1, "shared  services"',
        "10.102.0.0/16": "pcx-2",
    }
    assert ec2.asked == {"DescribeVpcPeeringConnections": 2}


def test_routes_are_read_with_the_prefix_lists_that_they_lead_to(
    sources: VpcSources, ec2: Ec2
) -> None:
    every, transit, onprem = ask(sources, "@routes", "@transit", "@onprem")
    assert shown(transit) == {
        "172.16.0.0/12": 'tgw-1, "rtb-1"',
        "10.200.0.0/16": 'tgw-1, "rtb-1"',
    }
    assert shown(onprem) == {"192.168.0.0/16": 'vgw-1, "rtb-1"'}
    assert shown(every) == shown(transit) | shown(onprem)
    assert ec2.asked["DescribeRouteTables"] == 1, "once for three words"
    assert ec2.asked["GetManagedPrefixListEntries"] == 1


def test_a_route_of_its_own_comes_before_one_by_a_prefix_list(
    sources: VpcSources, ec2: Ec2
) -> None:
    """Of the same CIDR (VPC user guide, "Route priority"): here it leads to the internet."""
    ec2.tables = [
        {**TABLE, "Routes": [*TABLE["Routes"], route("10.200.0.0/16", GatewayId="igw-1")]}
    ]
    (answer,) = ask(sources, "@transit")
    assert shown(answer) == {"172.16.0.0/12": 'tgw-1, "rtb-1"'}


def test_the_main_table_stands_for_a_subnet_without_one_of_its_own(
    sources: VpcSources, ec2: Ec2
) -> None:
    (answer,) = ask(sources, "@onprem", subnets=("subnet-b",))
    assert shown(answer) == {"192.168.0.0/16": 'vgw-1, "rtb-0"'}
    ec2.tables = []
    (short,) = ask(sources, "@onprem", subnets=("subnet-b",))
    assert isinstance(short, Failure)
    assert short.code == "AnswerShort"


def test_the_entries_of_a_version_of_a_prefix_list_are_asked_for_once(
    sources: VpcSources, ec2: Ec2
) -> None:
    for _ in range(3):
        (answer,) = ask(sources, "pl-0a1b2c3d")
        assert shown(answer) == {"10.200.0.0/16": '"office"'}
        assert answer.version == 3
    assert ec2.asked == {"DescribeManagedPrefixLists": 3, "GetManagedPrefixListEntries": 1}
    ec2.lists = [LIST | {"Version": 4}]
    ec2.entries = []
    assert shown(ask(sources, "pl-0a1b2c3d")[0]) == {}
    ec2.lists = [{k: v for k, v in LIST.items() if k != "Version"}]
    for _ in range(2):  # one that AWS manages says no version
        ask(sources, "pl-0a1b2c3d")
    assert ec2.asked["GetManagedPrefixListEntries"] == 4


def test_a_prefix_list_that_is_not_shown_or_of_ipv6_fails_alone(
    sources: VpcSources, ec2: Ec2
) -> None:
    ec2.lists.append(LIST | {"PrefixListId": "pl-0000000b", "AddressFamily": "IPv6"})
    good, gone, ipv6 = ask(sources, "pl-0a1b2c3d", "pl-0000000a", "pl-0000000b")
    assert isinstance(good, Look)
    assert [gone.code, ipv6.code] == ["PrefixListNotFound", "Ipv6PrefixList"]


def test_each_kind_fails_alone_and_says_what_to_allow(sources: VpcSources, ec2: Ec2) -> None:
    ec2.errors = {"DescribeRouteTables": "UnauthorizedOperation"}
    peering, found, named = ask(sources, "@peering", "@routes", "pl-0a1b2c3d")
    assert isinstance(peering, Look)
    assert isinstance(named, Look)
    assert found.action == "DescribeRouteTables"
    assert found.code == "UnauthorizedOperation"
    assert "allow ec2:DescribeRouteTables to the node's role" in found.message


WRONG: list[tuple[str, str, Any]] = [
    ("@peering", "VpcPeeringConnections", None),
    ("@peering", "VpcPeeringConnections", [PEERING | {"VpcPeeringConnectionId": "\u202e"}]),
    ("@peering", "VpcPeeringConnections", [PEERING | {"Status": {}}]),
    ("@peering", "VpcPeeringConnections", [PEERING | {"RequesterVpcInfo": {"VpcId": "vpc-9"}}]),
    (
        "@peering",
        "VpcPeeringConnections",
        [PEERING | {"AccepterVpcInfo": {"VpcId": "vpc-2", "CidrBlock": "0.0.0.0/0"}}],
    ),
    ("@peering", "VpcPeeringConnections", [PEERING] * 101),
    ("@routes", "RouteTables", [TABLE | {"Routes": None}]),
    ("@routes", "RouteTables", [TABLE | {"Routes": [route("10.0.0.0/33", GatewayId="vgw-1")]}]),
    ("@routes", "RouteTables", [TABLE | {"Routes": [route("10.0.0.0/8", GatewayId="x" * 999)]}]),
    ("@routes", "RouteTables", [TABLE | {"Routes": TABLE["Routes"] * 300}]),
    ("pl-0a1b2c3d", "PrefixLists", [LIST | {"Version": -1}]),
    ("pl-0a1b2c3d", "Entries", [{"Cidr": "10.0.0.1/8"}]),
    ("pl-0a1b2c3d", "Entries", [{"Cidr": "10.0.0.0/8", "Description": "x" * 2000}]),
]


@pytest.mark.parametrize(("name", "result", "value"), WRONG)
def test_an_answer_of_which_a_part_cannot_be_read_is_none(
    sources: VpcSources, ec2: Ec2, name: str, result: str, value: Any
) -> None:
    ec2.change = lambda _, answer: {result: value} if result in answer else answer
    (answer,) = ask(sources, name)
    assert isinstance(answer, Failure)
    assert answer.code == "AnswerLost"


def test_a_list_without_an_end_is_no_answer(sources: VpcSources, ec2: Ec2) -> None:
    ec2.change = lambda _, answer: answer | {"NextToken": "more"}
    (answer,) = ask(sources, "@peering")
    assert answer.code == "AnswerTooLong"
    assert ec2.asked["DescribeVpcPeeringConnections"] == MAX_PEERINGS // 100


def test_the_budget_of_calls_holds_for_sources_too(ec2: Ec2) -> None:
    sources = VpcSources(Calls(ec2, lambda: 0.0))
    answers = [ask(sources, "@peering")[0] for _ in range(60)]
    assert isinstance(answers[0], Look)
    assert answers[-1].code == "BudgetExhausted"
    assert ec2.asked["DescribeVpcPeeringConnections"] == 100
