"""Sources as EC2 answers over HTTP (the lab's), while peerings, routes and prefix lists change."""

from __future__ import annotations

from typing import Any

import pytest

from lab.vpc import VpcChanges
from reconciler.egress.observation import Question
from reconciler.egress.source import Failure, Look
from reconciler.targets.ec2.caller import InProcess
from reconciler.targets.ec2.calls import Calls
from reconciler.targets.ec2.sources import VpcSources

ACTIONS = {
    "DescribeVpcPeeringConnections",
    "DescribeRouteTables",
    "DescribeManagedPrefixLists",
    "GetManagedPrefixListEntries",
}


class Vpc:
    """The VPC, and what is asked of it."""

    def __init__(self, ec2: Any) -> None:
        self.ec2 = ec2
        self._changes = VpcChanges(ec2.cloud, ec2.vpc_id)
        self._sources = VpcSources(Calls(InProcess("us-east-1"), lambda: 0.0))

    def change(self, what: str, **given: Any) -> str:
        with self.ec2.cloud.lock:
            return self._changes.change(what, **given)

    def look(self, name: str) -> Look | Failure:
        subnets = frozenset({self.ec2.subnets["nodes-a"]})
        answers = self._sources.look(Question((name,), self.ec2.vpc_id, subnets))
        return answers[name]

    def shown(self, name: str) -> dict[str, str]:
        answer = self.look(name)
        assert isinstance(answer, Look), answer
        return {str(e.network): e.origin for e in answer.entries}


@pytest.fixture
def vpc(ec2: Any) -> Vpc:
    return Vpc(ec2)


def test_a_peering_comes_and_goes(vpc: Vpc) -> None:
    assert vpc.shown("@peering") == {}
    made = vpc.change("peering create", cidr="10.100.0.0/16", tag="shared")
    assert vpc.shown("@peering") == {"10.100.0.0/16": f'{made}, "shared"'}
    vpc.change("peering delete", peering=made)
    assert vpc.shown("@peering") == {}


def test_routes_of_the_main_table_and_of_the_subnets_own(vpc: Vpc) -> None:
    tgw = vpc.change("route add", cidr="172.16.0.0/12", via="tgw")
    vpc.change("route add", cidr="0.0.0.0/0", via="igw")
    vgw = vpc.change("route add", cidr="192.168.0.0/16", via="vgw")
    assert {v.split(",")[0] for v in vpc.shown("@routes").values()} == {tgw, vgw}
    assert list(vpc.shown("@transit")) == ["172.16.0.0/12"]
    vpc.change("route delete", cidr="172.16.0.0/12")
    assert list(vpc.shown("@routes")) == ["192.168.0.0/16"]
    client = vpc.ec2.client
    table = client.create_route_table(VpcId=vpc.ec2.vpc_id)["RouteTable"]["RouteTableId"]
    client.associate_route_table(RouteTableId=table, SubnetId=vpc.ec2.subnets["nodes-a"])
    assert vpc.shown("@routes") == {}


def test_a_prefix_list_gains_and_loses_an_entry_also_behind_a_route(vpc: Vpc) -> None:
    made = vpc.change("prefix-list create", cidrs=["10.200.0.0/16"], tag="office")
    vpc.change("route add", cidr=made, via="tgw")
    assert vpc.shown(made) == {"10.200.0.0/16": '"office"'}
    vpc.change("prefix-list add", prefix_list=made, cidr="10.201.0.0/16")
    assert set(vpc.shown(made)) == set(vpc.shown("@routes")) == {"10.200.0.0/16", "10.201.0.0/16"}
    vpc.change("prefix-list remove", prefix_list=made, cidr="10.200.0.0/16")
    assert set(vpc.shown(made)) == {"10.201.0.0/16"}


def test_one_of_amazons_prefix_lists_has_no_version(vpc: Vpc) -> None:
    lists = vpc.ec2.client.describe_managed_prefix_lists()["PrefixLists"]
    (s3,) = (p["PrefixListId"] for p in lists if p["PrefixListName"].endswith(".s3"))
    answer = vpc.look(s3)
    assert isinstance(answer, Look)
    assert answer.version is None
    assert len(answer.entries) == 3


@pytest.mark.parametrize("fault", [{"denied": sorted(ACTIONS)}, {"throttle": {"*": [0, 0]}}])
@pytest.mark.parametrize("name", ["@peering", "@routes", "pl-0a1b2c3d"])
def test_a_refused_call_is_a_failure(vpc: Vpc, name: str, fault: dict[str, Any]) -> None:
    vpc.ec2.cloud.faults.set(**fault)
    answer = vpc.look(name)
    assert isinstance(answer, Failure)
    assert answer.code in {"UnauthorizedOperation", "RequestLimitExceeded"}
    assert answer.action in ACTIONS


def test_an_empty_answer_is_empty_for_peerings_and_short_for_what_must_be_there(vpc: Vpc) -> None:
    vpc.change("peering create")
    made = vpc.change("prefix-list create", cidrs=["10.200.0.0/16"])
    vpc.ec2.cloud.faults.set(emptyEc2=sorted(ACTIONS))
    assert vpc.shown("@peering") == {}
    codes = [a.code for n in ("@routes", made) if isinstance(a := vpc.look(n), Failure)]
    assert codes == ["AnswerShort", "PrefixListNotFound"]


def test_more_than_a_page_is_read_to_its_end(vpc: Vpc) -> None:
    cidrs = [f"10.{100 + n // 256}.{n % 256}.0/24" for n in range(250)]
    assert len(vpc.shown(vpc.change("prefix-list create", cidrs=cidrs))) == 250
    assert vpc.ec2.cloud.faults.calls()["GetManagedPrefixListEntries"] == 3


def test_a_change_that_ec2_refuses_is_said(vpc: Vpc) -> None:
    with pytest.raises(ValueError, match="pcx-0"):
        vpc.change("peering delete", peering="pcx-0")
