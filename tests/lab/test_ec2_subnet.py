"""Subnets as a client finds them: by filters, with tags, zone and free addresses; over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from lab.topology import SUBNETS


@pytest.fixture
def vpc(ec2: Any) -> Any:
    """The lab's subnets with the tags that the lab gives them."""
    for s in SUBNETS:
        tags = [{"Key": "Name", "Value": s.name}, {"Key": "role", "Value": s.role}]
        ec2.client.create_tags(Resources=[ec2.subnets[s.name]], Tags=tags)
    return ec2


def found(vpc: Any, **filters: str | list[str]) -> set[str]:
    """Names of subnets by filters; ``__`` stands for a colon, ``_`` for a dash."""
    wanted = [
        {
            "Name": name.replace("__", ":").replace("_", "-"),
            "Values": [v] if isinstance(v, str) else v,
        }
        for name, v in filters.items()
    ]
    names = {subnet_id: name for name, subnet_id in vpc.subnets.items()}
    answer = vpc.client.describe_subnets(Filters=wanted)
    return {names.get(s["SubnetId"], "another VPC's") for s in answer["Subnets"]}


def describe(vpc: Any, name: str) -> dict[str, Any]:
    (body,) = vpc.client.describe_subnets(SubnetIds=[vpc.subnets[name]])["Subnets"]
    return dict(body)


def test_subnets_are_found_by_id_vpc_zone_and_tag(vpc):
    everything = set(vpc.subnets)
    assert found(vpc, vpc_id=vpc.vpc_id) == everything
    assert found(vpc, subnet_id=[vpc.subnets["tiny"], vpc.subnets["pods-b"]]) == {"tiny", "pods-b"}
    assert found(vpc, tag__role="pods") == {"pods-a", "pods-b"}
    assert found(vpc, tag__role=["pods", "hosts"]) == {"pods-a", "pods-b", "hosts"}
    assert found(vpc, tag__role="pod") == set(), "a part of a value is no value"
    assert found(vpc, tag__role="pod*") == {"pods-a", "pods-b"}
    assert found(vpc, tag__role="*") == everything
    assert found(vpc, tag__owner="*") == set()
    assert found(vpc, vpc_id="vpc-00000000000000000") == set()


def test_filters_of_subnets_narrow_together(vpc):
    here = {"vpc_id": vpc.vpc_id, "availability_zone": "us-east-1b"}
    assert found(vpc, **here) == {"nodes-b", "pods-b"}
    assert found(vpc, **here, tag__role="pods") == {"pods-b"}
    assert found(vpc, **here, tag__role="hosts") == set()
    assert found(vpc, **here, subnet_id=[vpc.subnets["pods-a"], vpc.subnets["nodes-b"]]) == {
        "nodes-b"
    }
    assert "another VPC's" in found(vpc, availability_zone="us-east-1b")


def test_pages_of_a_filtered_search_for_subnets_are_everything_once(vpc):
    wanted = [{"Name": "vpc-id", "Values": [vpc.vpc_id]}]
    paginator = vpc.client.get_paginator("describe_subnets")
    pages = list(paginator.paginate(Filters=wanted, PaginationConfig={"PageSize": 5}))
    ids = [s["SubnetId"] for p in pages for s in p["Subnets"]]
    assert [len(p["Subnets"]) for p in pages] == [5, 2]
    assert sorted(ids) == sorted(vpc.subnets.values())


def test_every_answer_carries_tags_zone_block_and_what_is_free(vpc):
    answer = vpc.client.describe_subnets(
        Filters=[{"Name": "vpc-id", "Values": [vpc.vpc_id]}],
    )["Subnets"]
    tags = [{t["Key"]: t["Value"] for t in s["Tags"]} for s in answer]
    told = {
        (t["Name"], t["role"], s["AvailabilityZone"], s["CidrBlock"])
        for s, t in zip(answer, tags, strict=True)
    }
    assert told == {(s.name, s.role, s.zone, str(s.cidr)) for s in SUBNETS}
    free = {t["Name"]: s["AvailableIpAddressCount"] for s, t in zip(answer, tags, strict=True)}
    assert (free["pods-a"], free["nodes-a"], free["tiny"]) == (251, 250, 11)
    assert {s["State"] for s in answer} == {"available"}
    assert {s["VpcId"] for s in answer} == {vpc.vpc_id}


def test_prefixes_and_addresses_are_counted_in_their_own_subnet(vpc):
    before = {name: describe(vpc, name)["AvailableIpAddressCount"] for name in vpc.subnets}
    made = vpc.client.create_network_interface(SubnetId=vpc.subnets["pods-a"], Ipv4PrefixCount=3)
    eni = made["NetworkInterface"]["NetworkInterfaceId"]
    vpc.client.create_network_interface(
        SubnetId=vpc.subnets["pods-b"], SecondaryPrivateIpAddressCount=4
    )
    taken = {
        name: count - describe(vpc, name)["AvailableIpAddressCount"]
        for name, count in before.items()
    }
    assert {n: c for n, c in taken.items() if c} == {"pods-a": 1 + 3 * 16, "pods-b": 5}
    vpc.client.delete_network_interface(NetworkInterfaceId=eni)
    assert describe(vpc, "pods-a")["AvailableIpAddressCount"] == before["pods-a"]


def test_of_several_subnets_the_one_that_is_not_there_is_named(vpc):
    for known in vpc.subnets.values():
        with pytest.raises(ClientError) as caught:
            vpc.client.describe_subnets(SubnetIds=[known, "subnet-00000000000000000"])
        assert caught.value.response["Error"] == {
            "Code": "InvalidSubnetID.NotFound",
            "Message": "The subnet ID 'subnet-00000000000000000' does not exist",
        }


def test_a_subnet_that_is_asked_for_twice_is_answered_once(vpc):
    asked = [vpc.subnets["tiny"]] * 2
    assert len(vpc.client.describe_subnets(SubnetIds=asked)["Subnets"]) == 1
