"""ENIs of other types than the ordinary one: trunk, EFA, EFA-only; over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError


def create(ec2: Any, interface_type: str, subnet: str = "nodes-a", **arguments: Any) -> Any:
    made = ec2.client.create_network_interface(
        SubnetId=ec2.subnets[subnet], InterfaceType=interface_type, **arguments
    )
    return made["NetworkInterface"]


def describe(ec2: Any, eni: Any) -> Any:
    ids = [eni["NetworkInterfaceId"]]
    (body,) = ec2.client.describe_network_interfaces(NetworkInterfaceIds=ids)["NetworkInterfaces"]
    return body


def attach(ec2: Any, eni: Any, index: int) -> str:
    answer = ec2.client.attach_network_interface(
        NetworkInterfaceId=eni["NetworkInterfaceId"],
        InstanceId=ec2.instance_id,
        DeviceIndex=index,
    )
    return str(answer["AttachmentId"])


def code(function: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ClientError) as caught:
        function(*arguments, **named)
    return str(caught.value.response["Error"]["Code"])


def free(ec2: Any, subnet: str) -> int:
    (body,) = ec2.client.describe_subnets(SubnetIds=[ec2.subnets[subnet]])["Subnets"]
    return int(body["AvailableIpAddressCount"])


@pytest.mark.parametrize("interface_type", ["interface", "trunk", "efa", "efa-only"])
def test_an_eni_keeps_its_type_and_is_found_by_it(ec2, interface_type):
    made = create(ec2, interface_type)
    assert made["InterfaceType"] == interface_type
    attach(ec2, made, 1)
    shown = describe(ec2, made)
    assert shown["InterfaceType"] == interface_type
    assert shown["Attachment"]["Status"] == "attached"
    wanted = [
        {"Name": "interface-type", "Values": [interface_type]},
        {"Name": "attachment.device-index", "Values": ["1"]},
    ]
    answer = ec2.client.describe_network_interfaces(Filters=wanted)["NetworkInterfaces"]
    assert [e["NetworkInterfaceId"] for e in answer] == [made["NetworkInterfaceId"]]


def test_an_eni_of_no_named_type_is_an_ordinary_one(ec2):
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets["nodes-a"])
    assert describe(ec2, made["NetworkInterface"])["InterfaceType"] == "interface"


@pytest.mark.parametrize("interface_type", ["branch", "lambda", "bogus"])
def test_a_type_that_cannot_be_asked_for_is_refused(ec2, interface_type):
    before = ec2.cloud.enis()
    assert code(create, ec2, interface_type) == "InvalidParameterValue"
    assert ec2.cloud.enis() == before


@pytest.mark.parametrize("interface_type", ["trunk", "efa", "efa-only"])
def test_every_type_fills_one_of_the_instances_slots(ec2, interface_type):
    """m5.large: three ENIs, the primary among them."""
    attach(ec2, create(ec2, interface_type), 1)
    attach(ec2, create(ec2, "interface"), 2)
    assert code(attach, ec2, create(ec2, "interface"), 3) == "AttachmentLimitExceeded"
    assert code(attach, ec2, create(ec2, interface_type), 3) == "AttachmentLimitExceeded"


def test_a_trunk_holds_addresses_like_any_eni(ec2):
    trunk = create(ec2, "trunk", SecondaryPrivateIpAddressCount=1, Ipv4PrefixCount=1)
    shown = describe(ec2, trunk)
    assert len(shown["PrivateIpAddresses"]) == 2
    assert len(shown["Ipv4Prefixes"]) == 1


def test_an_efa_only_eni_has_and_takes_no_address(ec2):
    before = free(ec2, "nodes-a")
    shown = describe(ec2, create(ec2, "efa-only"))
    assert "PrivateIpAddress" not in shown
    assert (shown["PrivateIpAddresses"], shown["Ipv4Prefixes"]) == ([], [])
    assert free(ec2, "nodes-a") == before
    create(ec2, "interface", "tiny", SecondaryPrivateIpAddressCount=10)
    assert free(ec2, "tiny") == 0
    assert create(ec2, "efa-only", "tiny"), "there is nothing it could lack"


@pytest.mark.parametrize(
    "asked",
    [
        {"PrivateIpAddress": "10.0.1.50"},
        {"PrivateIpAddresses": [{"PrivateIpAddress": "10.0.1.50", "Primary": True}]},
        {"SecondaryPrivateIpAddressCount": 1},
        {"Ipv4PrefixCount": 1},
        {"Ipv4Prefixes": [{"Ipv4Prefix": "10.0.1.64/28"}]},
        {"Ipv6PrefixCount": 1},
    ],
)
def test_an_efa_only_eni_is_not_made_with_addresses(ec2, asked):
    before = ec2.cloud.enis()
    assert code(create, ec2, "efa-only", **asked) == "InvalidParameterCombination"
    assert ec2.cloud.enis() == before


def test_an_efa_only_eni_is_given_no_addresses_later(ec2):
    eni = {"NetworkInterfaceId": create(ec2, "efa-only")["NetworkInterfaceId"]}
    refused = "InvalidParameterCombination"
    assign = ec2.client.assign_private_ip_addresses
    assert code(assign, **eni, SecondaryPrivateIpAddressCount=1) == refused
    assert code(assign, **eni, Ipv4PrefixCount=1) == refused
    assert code(assign, **eni, PrivateIpAddresses=["10.0.1.50"]) == refused
    assert code(ec2.client.assign_ipv6_addresses, **eni, Ipv6AddressCount=1) == refused
    assert describe(ec2, eni)["PrivateIpAddresses"] == []


def test_the_type_is_part_of_what_a_client_token_stands_for(ec2):
    first = create(ec2, "trunk", ClientToken="t")
    assert (
        create(ec2, "trunk", ClientToken="t")["NetworkInterfaceId"] == first["NetworkInterfaceId"]
    )
    assert code(create, ec2, "efa", ClientToken="t") == "IdempotentParameterMismatch"
