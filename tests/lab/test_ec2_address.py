"""Which addresses and prefixes the lab's EC2 gives out; the arithmetic, and over HTTP."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from lab.ec2.allocation import free_addresses, free_prefixes, usable

TINY = IPv4Network("192.0.2.16/28")
SMALL = IPv4Network("198.51.100.0/24")


def numbers(*addresses: str) -> set[int]:
    return {int(IPv4Address(a)) for a in addresses}


# -- the arithmetic -----------------------------------------------------------------------


def test_the_first_four_and_the_last_address_are_never_given_out():
    assert list(map(str, free_addresses(TINY, ()))) == [f"192.0.2.{n}" for n in range(20, 31)]
    assert len(usable(SMALL)) == 251


def test_the_lowest_free_address_is_next_also_in_a_gap():
    taken = numbers("192.0.2.20", "192.0.2.22")
    assert [str(a) for a in islice(free_addresses(TINY, taken), 2)] == ["192.0.2.21", "192.0.2.23"]


def test_prefixes_are_whole_aligned_blocks_of_16_without_the_reserved_ends():
    blocks = list(map(str, free_prefixes(SMALL, ())))
    assert blocks == [f"198.51.100.{n}/28" for n in range(16, 240, 16)]


def test_one_taken_address_spoils_its_block_and_no_other():
    blocks = list(map(str, free_prefixes(SMALL, numbers("198.51.100.31", "198.51.100.48"))))
    assert blocks[:2] == ["198.51.100.32/28", "198.51.100.64/28"]


@pytest.mark.parametrize("cidr", ["192.0.2.16/28", "192.0.2.0/29"])
def test_a_subnet_of_one_block_or_less_has_no_prefix(cidr):
    assert list(free_prefixes(IPv4Network(cidr), ())) == []


@given(st.integers(20, 28), st.sets(st.integers(0, 4095), max_size=200))
def test_whatever_is_taken_nothing_is_given_twice_or_from_outside(length, offsets):
    cidr = IPv4Network(f"10.0.0.0/{length}")
    taken = {int(cidr.network_address) + o for o in offsets}
    free = [int(a) for a in free_addresses(cidr, taken)]
    assert free == sorted(set(free))
    assert not taken & set(free)
    assert set(free) <= set(usable(cidr))
    assert len(free) + len(taken & set(usable(cidr))) == len(usable(cidr))
    for block in free_prefixes(cidr, taken):
        assert block.prefixlen == 28
        assert {int(a) for a in block} <= set(free)


# -- over HTTP ----------------------------------------------------------------------------


def create(ec2: Any, subnet: str = "nodes-a", **arguments: Any) -> dict[str, Any]:
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets[subnet], **arguments)
    body: dict[str, Any] = made["NetworkInterface"]
    return body


def assign(ec2: Any, eni: dict[str, Any], **what: Any) -> dict[str, Any]:
    answer: dict[str, Any] = ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], **what
    )
    return answer


def unassign(ec2: Any, eni: dict[str, Any], **what: Any) -> None:
    ec2.client.unassign_private_ip_addresses(NetworkInterfaceId=eni["NetworkInterfaceId"], **what)


def held(ec2: Any, eni: dict[str, Any]) -> tuple[list[str], list[str]]:
    answer = ec2.client.describe_network_interfaces(
        NetworkInterfaceIds=[eni["NetworkInterfaceId"]]
    )
    body = answer["NetworkInterfaces"][0]
    return (
        [a["PrivateIpAddress"] for a in body["PrivateIpAddresses"]],
        [p["Ipv4Prefix"] for p in body["Ipv4Prefixes"]],
    )


def free(ec2: Any, subnet: str) -> int:
    answer = ec2.client.describe_subnets(SubnetIds=[ec2.subnets[subnet]])
    return int(answer["Subnets"][0]["AvailableIpAddressCount"])


def code(function: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ClientError) as caught:
        function(*arguments, **named)
    return str(caught.value.response["Error"]["Code"])


def test_a_subnet_is_given_out_to_its_last_address_without_a_double(ec2):
    """A /28 has 11 addresses; stock moto would go on and repeat itself."""
    enis = [create(ec2, "tiny") for _ in range(11)]
    given_out = [e["PrivateIpAddress"] for e in enis]
    assert given_out == [f"10.0.8.{n}" for n in range(4, 15)]
    assert free(ec2, "tiny") == 0
    assert code(create, ec2, "tiny") == "InsufficientFreeAddressesInSubnet"
    ec2.client.delete_network_interface(NetworkInterfaceId=enis[3]["NetworkInterfaceId"])
    assert create(ec2, "tiny")["PrivateIpAddress"] == given_out[3]


def test_a_creation_that_does_not_fit_takes_nothing(ec2):
    before = ec2.cloud.enis()
    too_many = {"SecondaryPrivateIpAddressCount": 11}
    assert code(create, ec2, "tiny", **too_many) == "InsufficientFreeAddressesInSubnet"
    assert code(create, ec2, "tiny", Ipv4PrefixCount=1) == "InvalidParameterValue"
    assert ec2.cloud.enis() == before
    assert free(ec2, "tiny") == 11


def test_a_creation_holds_what_it_named(ec2):
    eni = create(
        ec2,
        PrivateIpAddresses=[
            {"PrivateIpAddress": "10.0.1.60"},
            {"PrivateIpAddress": "10.0.1.50", "Primary": True},
        ],
        Ipv4Prefixes=[{"Ipv4Prefix": "10.0.1.208/28"}],
        Description="named",
    )
    assert eni["PrivateIpAddress"] == "10.0.1.50"
    assert eni["Description"] == "named"
    assert held(ec2, eni) == (["10.0.1.50", "10.0.1.60"], ["10.0.1.208/28"])
    (primary,) = (a for a in eni["PrivateIpAddresses"] if a["Primary"])
    assert primary["PrivateIpAddress"] == "10.0.1.50"


def test_a_primary_is_chosen_where_none_is_named(ec2):
    eni = create(ec2, PrivateIpAddresses=[{"PrivateIpAddress": "10.0.1.60"}])
    assert held(ec2, eni)[0] == ["10.0.1.4", "10.0.1.60"]


def test_a_chosen_primary_is_none_of_the_named_secondaries(ec2):
    eni = create(ec2, PrivateIpAddresses=[{"PrivateIpAddress": "10.0.1.4"}])
    assert held(ec2, eni)[0] == ["10.0.1.5", "10.0.1.4"]


@pytest.mark.parametrize(
    ("address", "refusal"),
    [
        ("10.0.1.10", "InvalidIPAddress.InUse"),  # the instance's own
        ("10.0.2.10", "InvalidParameterValue"),  # another subnet's
        ("10.0.1.0", "InvalidParameterValue"),
        ("10.0.1.3", "InvalidParameterValue"),
        ("10.0.1.255", "InvalidParameterValue"),
    ],
)
def test_a_creation_with_an_impossible_address_is_refused(ec2, address, refusal):
    before = ec2.cloud.enis()
    assert code(create, ec2, PrivateIpAddress=address) == refusal
    secondary = [{"PrivateIpAddress": address}]
    assert code(create, ec2, PrivateIpAddresses=secondary) == refusal
    assert ec2.cloud.enis() == before


def test_counted_addresses_are_the_lowest_free_ones(ec2):
    eni = create(ec2, PrivateIpAddress="10.0.1.5")
    answer = assign(ec2, eni, SecondaryPrivateIpAddressCount=3)
    fresh = [a["PrivateIpAddress"] for a in answer["AssignedPrivateIpAddresses"]]
    assert fresh == ["10.0.1.4", "10.0.1.6", "10.0.1.7"]


def test_prefixes_are_assigned_by_count_and_by_name_and_answered_alone(ec2):
    eni = create(ec2, SecondaryPrivateIpAddressCount=1)
    counted = assign(ec2, eni, Ipv4PrefixCount=2)
    assert [p["Ipv4Prefix"] for p in counted["AssignedIpv4Prefixes"]] == [
        "10.0.1.16/28",
        "10.0.1.32/28",
    ]
    named = assign(ec2, eni, Ipv4Prefixes=["10.0.1.128/28"])
    assert [p["Ipv4Prefix"] for p in named["AssignedIpv4Prefixes"]] == ["10.0.1.128/28"]
    assert "AssignedPrivateIpAddresses" not in named or not named["AssignedPrivateIpAddresses"]
    assert free(ec2, "nodes-a") == 251 - 1 - 2 - 3 * 16


def test_addresses_are_not_taken_out_of_prefixes_nor_prefixes_laid_over_addresses(ec2):
    one = create(ec2, PrivateIpAddress="10.0.1.50", Ipv4Prefixes=[{"Ipv4Prefix": "10.0.1.16/28"}])
    two = create(ec2)
    inside = {"PrivateIpAddresses": ["10.0.1.20"]}
    assert code(assign, ec2, two, **inside) == "InvalidIPAddress.InUse"
    assert code(assign, ec2, two, Ipv4Prefixes=["10.0.1.48/28"]) == "InvalidIPAddress.InUse"
    assert code(assign, ec2, two, Ipv4Prefixes=["10.0.1.16/28"]) == "InvalidIPAddress.InUse"
    counted = assign(ec2, two, Ipv4PrefixCount=1)["AssignedIpv4Prefixes"]
    assert counted == [{"Ipv4Prefix": "10.0.1.32/28"}]
    assert held(ec2, one)[1] == ["10.0.1.16/28"]


def test_an_enis_prefix_fills_one_address_slot(ec2):
    """m5.large: 10 slots; 1 primary and 9 prefixes of 16."""
    eni = create(ec2)
    ec2.client.attach_network_interface(
        NetworkInterfaceId=eni["NetworkInterfaceId"], InstanceId=ec2.instance_id, DeviceIndex=1
    )
    assign(ec2, eni, Ipv4PrefixCount=9)
    assert code(assign, ec2, eni, Ipv4PrefixCount=1) == "PrivateIpAddressLimitExceeded"
    one = {"SecondaryPrivateIpAddressCount": 1}
    assert code(assign, ec2, eni, **one) == "PrivateIpAddressLimitExceeded"
    unassign(ec2, eni, Ipv4Prefixes=["10.0.1.16/28"])
    assign(ec2, eni, **one)


def test_an_eni_that_holds_more_than_the_instance_can_is_not_attached(ec2):
    eni = create(ec2, SecondaryPrivateIpAddressCount=10)
    refused = code(
        ec2.client.attach_network_interface,
        NetworkInterfaceId=eni["NetworkInterfaceId"],
        InstanceId=ec2.instance_id,
        DeviceIndex=1,
    )
    assert refused == "PrivateIpAddressLimitExceeded"


def test_a_full_subnet_and_a_fragmented_one_refuse_prefixes_differently(ec2):
    """Both as AWS support told cilium/cilium#31016."""
    one_each = [{"PrivateIpAddress": f"10.0.2.{n}"} for n in range(20, 240, 16)]
    eni = create(ec2, "nodes-b", PrivateIpAddresses=one_each)
    assert code(assign, ec2, eni, Ipv4PrefixCount=1) == "InsufficientCidrBlocks"
    assign(ec2, eni, SecondaryPrivateIpAddressCount=free(ec2, "nodes-b") - 15)
    assert code(assign, ec2, eni, Ipv4PrefixCount=1) == "InvalidParameterValue"
    assert free(ec2, "nodes-b") == 15


def test_an_address_given_back_can_be_had_by_another(ec2):
    one, two = create(ec2), create(ec2)
    assign(ec2, one, PrivateIpAddresses=["10.0.1.99"])
    unassign(ec2, one, PrivateIpAddresses=["10.0.1.99"])
    assign(ec2, two, PrivateIpAddresses=["10.0.1.99"])
    assert "10.0.1.99" not in held(ec2, one)[0]
    assert "10.0.1.99" in held(ec2, two)[0]


def test_assigning_what_the_eni_holds_already_changes_nothing(ec2):
    """A retry after a lost answer; EC2 does the same."""
    eni = create(ec2)
    for _ in range(2):
        assign(ec2, eni, PrivateIpAddresses=["10.0.1.99"])
    assert held(ec2, eni)[0] == ["10.0.1.4", "10.0.1.99"]


def test_reassignment_never_takes_another_enis_primary(ec2):
    one, two = create(ec2), create(ec2)
    taken = {"PrivateIpAddresses": [one["PrivateIpAddress"]], "AllowReassignment": True}
    assert code(assign, ec2, two, **taken) == "InvalidIPAddress.InUse"
    assert held(ec2, one)[0] == [one["PrivateIpAddress"]]


def test_an_unassignment_with_one_wrong_part_takes_nothing_away(ec2):
    eni = create(ec2, SecondaryPrivateIpAddressCount=2, Ipv4PrefixCount=1)
    (primary, *secondaries), prefixes = before = held(ec2, eni)
    for wrong in (
        {"PrivateIpAddresses": [*secondaries, primary]},
        {"PrivateIpAddresses": [*secondaries, "10.0.1.200"]},
        {"PrivateIpAddresses": ["10.0.1.17"]},  # in the prefix, but no address of its own
        {"Ipv4Prefixes": [*prefixes, "10.0.1.128/28"]},
    ):
        assert code(unassign, ec2, eni, **wrong) == "InvalidParameterValue"
    assert held(ec2, eni) == before


def test_every_address_call_names_an_eni_that_is_there(ec2):
    nobody = {"NetworkInterfaceId": "eni-00000000000000000"}
    assert code(assign, ec2, nobody, SecondaryPrivateIpAddressCount=1) == (
        "InvalidNetworkInterfaceID.NotFound"
    )
    assert code(unassign, ec2, nobody, PrivateIpAddresses=["10.0.1.9"]) == (
        "InvalidNetworkInterfaceID.NotFound"
    )


def test_ipv6_addresses_and_prefixes_are_given_out_apart(ec2):
    block = ec2.client.associate_vpc_cidr_block(VpcId=ec2.vpc_id, AmazonProvidedIpv6CidrBlock=True)
    cidr = block["Ipv6CidrBlockAssociation"]["Ipv6CidrBlock"].replace("/56", "/64")
    ec2.client.associate_subnet_cidr_block(SubnetId=ec2.subnets["pods-a"], Ipv6CidrBlock=cidr)
    one = create(ec2, "pods-a", Ipv6PrefixCount=2)["NetworkInterfaceId"]
    two = create(ec2, "pods-a")["NetworkInterfaceId"]
    answer = ec2.client.assign_ipv6_addresses(
        NetworkInterfaceId=two, Ipv6PrefixCount=1, Ipv6AddressCount=2
    )
    views = {e.eni_id: e for e in ec2.cloud.enis()}
    assert [str(a) for a in views[two].ipv6_addresses] == answer["AssignedIpv6Addresses"]
    assert [str(p) for p in views[two].ipv6_prefixes] == answer["AssignedIpv6Prefixes"]
    prefixes = views[one].ipv6_prefixes + views[two].ipv6_prefixes
    assert len(set(prefixes)) == 3
    assert {p.prefixlen for p in prefixes} == {80}
    assert not any(a in p for p in prefixes for a in views[two].ipv6_addresses)
