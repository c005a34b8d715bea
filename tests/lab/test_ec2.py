"""The lab's EC2 says no where EC2 does; over HTTP, with the SDK."""

from __future__ import annotations

import time
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError
from waiting import until


def refusal(function: Any, **arguments: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        function(**arguments)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def create(ec2: Any, subnet: str = "nodes-a", **arguments: Any) -> dict[str, Any]:
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets[subnet], **arguments)
    body: dict[str, Any] = made["NetworkInterface"]
    return body


def attach(ec2: Any, eni: str, index: int = 1) -> str:
    answer = ec2.client.attach_network_interface(
        NetworkInterfaceId=eni, InstanceId=ec2.instance_id, DeviceIndex=index
    )
    return str(answer["AttachmentId"])


def describe(ec2: Any, eni: str) -> dict[str, Any]:
    answer = ec2.client.describe_network_interfaces(NetworkInterfaceIds=[eni])
    body: dict[str, Any] = answer["NetworkInterfaces"][0]
    return body


def addresses(body: dict[str, Any]) -> list[str]:
    return [a["PrivateIpAddress"] for a in body["PrivateIpAddresses"]]


def free(ec2: Any, subnet: str = "nodes-a") -> int:
    answer = ec2.client.describe_subnets(SubnetIds=[ec2.subnets[subnet]])
    return int(answer["Subnets"][0]["AvailableIpAddressCount"])


def test_a_counted_assignment_names_the_new_addresses_only(ec2: Any) -> None:
    eni = create(ec2, SecondaryPrivateIpAddressCount=3)
    eni_id = eni["NetworkInterfaceId"]
    answer = ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=2
    )
    fresh = [a["PrivateIpAddress"] for a in answer["AssignedPrivateIpAddresses"]]
    assert len(fresh) == 2
    assert not set(fresh) & set(addresses(eni))
    assert set(addresses(describe(ec2, eni_id))) == set(addresses(eni)) | set(fresh)


def test_an_explicit_address_is_given_or_refused(ec2: Any) -> None:
    one, two = (create(ec2)["NetworkInterfaceId"] for _ in range(2))
    assign = ec2.client.assign_private_ip_addresses
    answer = assign(NetworkInterfaceId=one, PrivateIpAddresses=["10.0.1.99"])
    assert answer["AssignedPrivateIpAddresses"] == [{"PrivateIpAddress": "10.0.1.99"}]
    taken = {"NetworkInterfaceId": two, "PrivateIpAddresses": ["10.0.1.99"]}
    assert refusal(assign, **taken)[0] == "InvalidIPAddress.InUse"
    for bad in ("10.0.2.9", "10.0.1.1", "10.0.1.255"):
        code, _ = refusal(assign, NetworkInterfaceId=two, PrivateIpAddresses=[bad])
        assert code == "InvalidParameterValue"
    assign(**taken, AllowReassignment=True)
    assert "10.0.1.99" not in addresses(describe(ec2, one))
    assert "10.0.1.99" in addresses(describe(ec2, two))


def test_both_limits_of_the_instance_type_hold(ec2: Any) -> None:
    """m5.large: 3 ENIs with 10 addresses each."""
    enis = [create(ec2)["NetworkInterfaceId"] for _ in range(3)]
    attach(ec2, enis[0], 1)
    attach(ec2, enis[1], 2)
    one_more = {"NetworkInterfaceId": enis[2], "InstanceId": ec2.instance_id, "DeviceIndex": 3}
    assert refusal(ec2.client.attach_network_interface, **one_more)[0] == "AttachmentLimitExceeded"
    assign = ec2.client.assign_private_ip_addresses
    assign(NetworkInterfaceId=enis[0], SecondaryPrivateIpAddressCount=9)
    too_many = {"NetworkInterfaceId": enis[0], "SecondaryPrivateIpAddressCount": 1}
    assert refusal(assign, **too_many)[0] == "PrivateIpAddressLimitExceeded"
    prefix = {"NetworkInterfaceId": enis[0], "Ipv4PrefixCount": 1}
    assert refusal(assign, **prefix)[0] == "PrivateIpAddressLimitExceeded"


def test_a_full_subnet_gives_nothing_and_says_so(ec2: Any) -> None:
    """A /28 has 11 addresses to give."""
    assert free(ec2, "tiny") == 11
    eni = create(ec2, "tiny", SecondaryPrivateIpAddressCount=8)
    assert free(ec2, "tiny") == 2
    more = {"NetworkInterfaceId": eni["NetworkInterfaceId"], "SecondaryPrivateIpAddressCount": 3}
    code, _ = refusal(ec2.client.assign_private_ip_addresses, **more)
    assert code == "InsufficientFreeAddressesInSubnet"
    assert free(ec2, "tiny") == 2


def test_prefixes_are_aligned_counted_and_can_be_given_back(ec2: Any) -> None:
    eni = create(ec2, Ipv4PrefixCount=2)["NetworkInterfaceId"]
    held = [p["Ipv4Prefix"] for p in describe(ec2, eni)["Ipv4Prefixes"]]
    assert held == ["10.0.1.16/28", "10.0.1.32/28"]
    assert free(ec2) == 250 - 1 - 32
    ec2.client.unassign_private_ip_addresses(NetworkInterfaceId=eni, Ipv4Prefixes=[held[0]])
    assert [p["Ipv4Prefix"] for p in describe(ec2, eni)["Ipv4Prefixes"]] == [held[1]]
    assert free(ec2) == 250 - 1 - 16


def test_a_subnet_without_a_whole_block_refuses_differently_from_a_full_one(ec2: Any) -> None:
    """Two errors, as AWS support told cilium/cilium#31016."""
    request = {"SubnetId": ec2.subnets["tiny"], "Ipv4PrefixCount": 1}
    assert refusal(ec2.client.create_network_interface, **request)[0] == "InvalidParameterValue"
    # One address in the middle of each block of nodes-b leaves room, but no block.
    holes = [{"PrivateIpAddress": f"10.0.2.{n}"} for n in range(20, 255, 16)]
    create(ec2, "nodes-b", PrivateIpAddresses=holes)
    request = {"SubnetId": ec2.subnets["nodes-b"], "Ipv4PrefixCount": 1}
    assert refusal(ec2.client.create_network_interface, **request)[0] == "InsufficientCidrBlocks"


def test_ipv6_prefixes_are_in_the_model(ec2: Any) -> None:
    block = ec2.client.associate_vpc_cidr_block(VpcId=ec2.vpc_id, AmazonProvidedIpv6CidrBlock=True)
    cidr = block["Ipv6CidrBlockAssociation"]["Ipv6CidrBlock"].replace("/56", "/64")
    ec2.client.associate_subnet_cidr_block(SubnetId=ec2.subnets["pods-a"], Ipv6CidrBlock=cidr)
    eni = create(ec2, "pods-a", Ipv6PrefixCount=1)["NetworkInterfaceId"]
    (prefix,) = describe(ec2, eni)["Ipv6Prefixes"]
    assert prefix["Ipv6Prefix"].endswith("/80")
    answer = ec2.client.assign_ipv6_addresses(NetworkInterfaceId=eni, Ipv6AddressCount=2)
    assert len(answer["AssignedIpv6Addresses"]) == 2
    without = {"SubnetId": ec2.subnets["nodes-a"], "Ipv6PrefixCount": 1}
    assert refusal(ec2.client.create_network_interface, **without)[0] == "InvalidParameterValue"


def test_the_primary_address_cannot_be_taken_away(ec2: Any) -> None:
    eni = create(ec2)
    unassign = ec2.client.unassign_private_ip_addresses
    for address in (addresses(eni)[0], "10.0.1.200"):
        arguments = {
            "NetworkInterfaceId": eni["NetworkInterfaceId"],
            "PrivateIpAddresses": [address],
        }
        assert refusal(unassign, **arguments)[0] == "InvalidParameterValue"


def test_a_client_token_makes_one_eni(ec2: Any) -> None:
    first = create(ec2, ClientToken="t", SecondaryPrivateIpAddressCount=2)
    again = create(ec2, ClientToken="t", SecondaryPrivateIpAddressCount=2)
    assert first["NetworkInterfaceId"] == again["NetworkInterfaceId"]
    other = {"SubnetId": ec2.subnets["nodes-a"], "ClientToken": "t"}
    code, _ = refusal(ec2.client.create_network_interface, **other)
    assert code == "IdempotentParameterMismatch"


def test_an_occupied_device_index_is_refused_also_the_primarys(ec2: Any) -> None:
    one, two = (create(ec2)["NetworkInterfaceId"] for _ in range(2))
    attach(ec2, one, 1)
    for index in (0, 1):
        request = {"NetworkInterfaceId": two, "InstanceId": ec2.instance_id, "DeviceIndex": index}
        assert (
            refusal(ec2.client.attach_network_interface, **request)[0] == "InvalidParameterValue"
        )
    assert describe(ec2, one)["Attachment"]["DeviceIndex"] == 1


def test_attaching_is_refused_across_zones_twice_and_to_nothing(ec2: Any) -> None:
    elsewhere, here = create(ec2, "nodes-b"), create(ec2)
    attach(ec2, here["NetworkInterfaceId"], 1)
    call = ec2.client.attach_network_interface

    def code(eni: str, instance: str = "") -> str:
        request = {"NetworkInterfaceId": eni, "InstanceId": instance or ec2.instance_id}
        return refusal(call, DeviceIndex=2, **request)[0]

    assert code(elsewhere["NetworkInterfaceId"]) == "InvalidParameterCombination"
    assert code(here["NetworkInterfaceId"]) == "InvalidParameterValue"
    assert code("eni-00000000000000000") == "InvalidNetworkInterfaceID.NotFound"
    lost = create(ec2)["NetworkInterfaceId"]
    assert code(lost, "i-00000000000000000") == "InvalidInstanceID.NotFound"


def test_attach_and_detach_take_their_time_and_show_it(ec2: Any) -> None:
    ec2.cloud.faults.set(attachDelaySeconds=0.15, detachDelaySeconds=0.15)
    eni = create(ec2)["NetworkInterfaceId"]
    attachment = attach(ec2, eni)
    assert describe(ec2, eni)["Attachment"]["Status"] == "attaching"
    until(lambda: describe(ec2, eni)["Attachment"]["Status"] == "attached")
    ec2.client.detach_network_interface(AttachmentId=attachment)
    assert describe(ec2, eni)["Attachment"]["Status"] == "detaching"
    until(lambda: "Attachment" not in describe(ec2, eni))
    assert describe(ec2, eni)["Status"] == "available"


def test_what_is_attached_cannot_be_deleted_and_the_primary_not_detached(ec2: Any) -> None:
    eni = create(ec2)["NetworkInterfaceId"]
    attachment = attach(ec2, eni)
    delete = ec2.client.delete_network_interface
    assert refusal(delete, NetworkInterfaceId=eni)[0] == "InvalidParameterValue"
    primary = next(e for e in ec2.cloud.enis() if e.device_index == 0)
    detach = ec2.client.detach_network_interface
    assert refusal(detach, AttachmentId=primary.attachment_id)[0] == "OperationNotPermitted"
    unknown = {"AttachmentId": "eni-attach-00000000000000000"}
    assert refusal(detach, **unknown)[0] == "InvalidAttachmentID.NotFound"
    detach(AttachmentId=attachment)
    delete(NetworkInterfaceId=eni)
    code, _ = refusal(ec2.client.describe_network_interfaces, NetworkInterfaceIds=[eni])
    assert code == "InvalidNetworkInterfaceID.NotFound"


def test_delete_on_termination_decides_what_stays(ec2: Any) -> None:
    keep, die = (create(ec2)["NetworkInterfaceId"] for _ in range(2))
    attach(ec2, keep, 1)
    ec2.client.modify_network_interface_attribute(
        NetworkInterfaceId=die,
        Attachment={"AttachmentId": attach(ec2, die, 2), "DeleteOnTermination": True},
    )
    assert describe(ec2, die)["Attachment"]["DeleteOnTermination"] is True
    ec2.client.terminate_instances(InstanceIds=[ec2.instance_id])
    assert [(e.eni_id, e.status) for e in ec2.cloud.enis()] == [(keep, "available")]


def test_pages_are_as_small_as_asked_and_tokens_are_checked(ec2: Any) -> None:
    for _ in range(11):
        create(ec2)
    pages = ec2.client.get_paginator("describe_network_interfaces").paginate(
        PaginationConfig={"PageSize": 5}
    )
    assert [len(p["NetworkInterfaces"]) for p in pages] == [5, 5, 2]
    for call in (ec2.client.describe_network_interfaces, ec2.client.describe_subnets):
        assert refusal(call, NextToken="nonsense")[0] == "InvalidNextToken"


def test_filters_see_secondaries_tags_and_attachments(ec2: Any) -> None:
    tags = [{"ResourceType": "network-interface", "Tags": [{"Key": "k", "Value": "v"}]}]
    eni = create(ec2, SecondaryPrivateIpAddressCount=1, TagSpecifications=tags)
    eni_id = eni["NetworkInterfaceId"]

    def found(name: str, value: str) -> list[str]:
        filters = [{"Name": name, "Values": [value]}]
        answer = ec2.client.describe_network_interfaces(Filters=filters)
        return [i["NetworkInterfaceId"] for i in answer["NetworkInterfaces"]]

    assert found("addresses.private-ip-address", addresses(eni)[1]) == [eni_id]
    assert found("tag:k", "v") == [eni_id]
    assert found("status", "available") == [eni_id]
    assert eni_id not in found("attachment.instance-id", ec2.instance_id)
    ec2.client.delete_network_interface(NetworkInterfaceId=eni_id)
    left = ec2.client.describe_tags(Filters=[{"Name": "resource-id", "Values": [eni_id]}])
    assert left["Tags"] == []


def test_throttling_is_a_bucket_that_refills(ec2: Any) -> None:
    now = [0.0]
    ec2.cloud.faults._clock = lambda: now[0]
    ec2.cloud.faults.set(throttle={"DescribeSubnets": [2, 1]})
    call = ec2.client.describe_subnets
    call()
    call()
    assert refusal(call) == ("RequestLimitExceeded", 503)
    ec2.client.describe_vpcs()  # another action, another bucket
    now[0] = 1.0
    call()
    ec2.cloud.faults._clock = time.monotonic
    assert ec2.cloud.faults.failed() == {"DescribeSubnets": 1}


def test_an_error_before_the_effect_has_none_and_one_after_has_it(ec2: Any) -> None:
    errors = [
        {"action": "CreateNetworkInterface", "code": "InternalError", "when": "before"},
        {"action": "CreateNetworkInterface", "code": "InternalError", "when": "after"},
        {"action": "CreateNetworkInterface", "code": None, "when": "after"},
    ]
    counts = []
    for error in errors:
        ec2.cloud.faults.set(errors=[error])
        with pytest.raises((ClientError, HTTPClientError, ConnectionClosedError)):
            create(ec2)
        counts.append(len(ec2.cloud.enis()))
    assert counts == [1, 2, 3]
    create(ec2)  # each error was for one call


def test_a_denied_action_is_denied_and_no_other(ec2: Any) -> None:
    ec2.cloud.faults.set(denied=["DescribeSubnets"])
    assert refusal(ec2.client.describe_subnets) == ("UnauthorizedOperation", 403)
    ec2.client.describe_network_interfaces()


def test_stale_reads_show_the_past_and_then_the_present(ec2: Any) -> None:
    ec2.cloud.faults.set(staleEc2Seconds=1.0)
    eni = create(ec2)["NetworkInterfaceId"]

    def known() -> bool:
        answer = ec2.client.describe_network_interfaces()
        return eni in [i["NetworkInterfaceId"] for i in answer["NetworkInterfaces"]]

    assert not known()
    until(known)


def test_an_action_nobody_wrote_is_an_error_of_ec2s_kind(ec2: Any) -> None:
    arguments = {"BranchInterfaceId": "eni-1", "TrunkInterfaceId": "eni-2"}
    assert refusal(ec2.client.associate_trunk_interface, **arguments)[0] == "InvalidAction"


def test_a_switch_that_does_not_exist_is_refused(ec2: Any) -> None:
    with pytest.raises(ValueError, match="no such switch: nonsense"):
        ec2.cloud.faults.set(nonsense=1)
