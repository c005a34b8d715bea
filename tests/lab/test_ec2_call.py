"""How the lab's EC2 answers: pages, filters, tokens, lost answers, the past; over HTTP."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from lab import ec2 as lab_ec2


def create(ec2: Any, subnet: str = "nodes-a", **arguments: Any) -> str:
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets[subnet], **arguments)
    return str(made["NetworkInterface"]["NetworkInterfaceId"])


def attach(ec2: Any, eni: str, index: int = 1) -> str:
    answer = ec2.client.attach_network_interface(
        NetworkInterfaceId=eni, InstanceId=ec2.instance_id, DeviceIndex=index
    )
    return str(answer["AttachmentId"])


def found(ec2: Any, **filters: str | list[str]) -> list[str]:
    """Ids by filters; ``__`` stands for a dot, ``_`` for a dash."""
    wanted = [
        {
            "Name": name.replace("__", ".").replace("_", "-"),
            "Values": [v] if isinstance(v, str) else v,
        }
        for name, v in filters.items()
    ]
    answer = ec2.client.describe_network_interfaces(Filters=wanted)
    return [e["NetworkInterfaceId"] for e in answer["NetworkInterfaces"]]


def describe(ec2: Any, eni: str) -> dict[str, Any]:
    answer = ec2.client.describe_network_interfaces(NetworkInterfaceIds=[eni])
    body: dict[str, Any] = answer["NetworkInterfaces"][0]
    return body


def refusal(function: Any, *arguments: Any, **named: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        function(*arguments, **named)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def primary(ec2: Any) -> Any:
    return next(e for e in ec2.cloud.enis() if e.device_index == 0)


# -- pages and filters --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "key"),
    [
        ("describe_network_interfaces", "NetworkInterfaces"),
        ("describe_subnets", "Subnets"),
    ],
)
def test_pages_together_are_everything_once(ec2, operation, key):
    for _ in range(6):
        create(ec2)
    call = getattr(ec2.client, operation)
    whole = call()
    assert "NextToken" not in whole
    paginator = ec2.client.get_paginator(operation)
    pages = list(paginator.paginate(PaginationConfig={"PageSize": 5}))
    assert len(pages) > 1
    assert all(len(p[key]) <= 5 for p in pages)
    assert [item for p in pages for item in p[key]] == whole[key]


def test_instance_types_come_in_pages_with_their_limits(ec2):
    one = ec2.client.describe_instance_types(MaxResults=5)
    two = ec2.client.describe_instance_types(MaxResults=5, NextToken=one["NextToken"])
    names = [t["InstanceType"] for p in (one, two) for t in p["InstanceTypes"]]
    assert len(set(names)) == 10
    (large,) = ec2.client.describe_instance_types(InstanceTypes=["m5.large"])["InstanceTypes"]
    network = large["NetworkInfo"]
    assert (network["MaximumNetworkInterfaces"], network["Ipv4AddressesPerInterface"]) == (3, 10)


def test_filters_narrow_together_and_their_values_widen(ec2):
    here, there, attached = create(ec2), create(ec2, "nodes-b"), create(ec2)
    attach(ec2, attached)
    mine = found(ec2, attachment__instance_id=ec2.instance_id)
    assert mine == [primary(ec2).eni_id, attached]
    assert found(ec2, attachment__instance_id=ec2.instance_id, attachment__device_index="1") == [
        attached
    ]
    assert found(ec2, subnet_id=list(ec2.subnets.values()), status="available") == [here, there]
    assert found(ec2, subnet_id=ec2.subnets["nodes-b"]) == [there]
    assert found(ec2, availability_zone="us-east-1b") == [there]
    assert found(ec2, vpc_id="vpc-00000000000000000") == []
    assert found(ec2, mac_address=describe(ec2, there)["MacAddress"]) == [there]


def test_tags_are_found_by_key_by_value_and_by_a_star(ec2):
    def tagged(**tags: str) -> str:
        pairs = [{"Key": k, "Value": v} for k, v in tags.items()]
        kind = {"ResourceType": "network-interface", "Tags": pairs}
        return create(ec2, TagSpecifications=[kind])

    one, two = tagged(node="i-1", role="pods"), tagged(node="i-2")
    assert found(ec2, tag_key="role") == [one]
    assert found(ec2, tag_key="node") == [one, two]
    by_value = ec2.client.describe_network_interfaces(
        Filters=[{"Name": "tag:node", "Values": ["i-*"]}, {"Name": "tag:role", "Values": ["pods"]}]
    )
    assert [e["NetworkInterfaceId"] for e in by_value["NetworkInterfaces"]] == [one]
    assert {"Key": "role", "Value": "pods"} in describe(ec2, one)["TagSet"]
    ec2.client.create_tags(Resources=[two], Tags=[{"Key": "role", "Value": "late"}])
    assert found(ec2, tag_key="role") == [one, two]


def test_a_filter_nobody_knows_is_refused_not_ignored(ec2):
    code, message = refusal(found, ec2, no_such_filter="x")
    assert code == "InvalidParameterValue"
    assert "no-such-filter" in message


# -- create, attach, modify ---------------------------------------------------------------


def test_an_eni_is_pending_in_the_answer_and_available_at_the_next_look(ec2):
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets["nodes-a"])
    eni = made["NetworkInterface"]
    assert eni["Status"] == "pending"
    assert describe(ec2, eni["NetworkInterfaceId"])["Status"] == "available"
    assert "Attachment" not in describe(ec2, eni["NetworkInterfaceId"])


def test_calls_without_a_token_make_an_eni_each(ec2):
    """The SDK makes up a ClientToken for each call."""
    assert create(ec2) != create(ec2)


def test_a_token_used_by_a_call_that_was_refused_is_still_good(ec2):
    code, _ = refusal(create, ec2, "tiny", SecondaryPrivateIpAddressCount=99, ClientToken="t")
    assert code == "InsufficientFreeAddressesInSubnet"
    assert create(ec2, "tiny", ClientToken="t")


def test_a_dry_run_does_nothing(ec2):
    before = ec2.cloud.enis()
    assert refusal(create, ec2, DryRun=True)[0] == "DryRunOperation"
    assert ec2.cloud.enis() == before


def test_groups_and_subnets_have_to_exist(ec2):
    assert refusal(create, ec2, Groups=["sg-00000000000000000"])[0] == "InvalidGroup.NotFound"
    nowhere = {"SubnetId": "subnet-00000000000000000"}
    code, _ = refusal(ec2.client.create_network_interface, **nowhere)
    assert code == "InvalidSubnetID.NotFound"
    made = ec2.client.create_security_group(GroupName="g", Description="g", VpcId=ec2.vpc_id)
    eni = create(ec2, Groups=[made["GroupId"]])
    assert [g["GroupId"] for g in describe(ec2, eni)["Groups"]] == [made["GroupId"]]


def test_groups_are_replaced_and_the_instances_are_not_mixed_in(ec2):
    ids = [
        ec2.client.create_security_group(GroupName=n, Description=n, VpcId=ec2.vpc_id)["GroupId"]
        for n in ("one", "two")
    ]
    eni = create(ec2, Groups=[ids[0]])
    attach(ec2, eni)
    ec2.client.modify_network_interface_attribute(NetworkInterfaceId=eni, Groups=[ids[1]])
    assert [g["GroupId"] for g in describe(ec2, eni)["Groups"]] == [ids[1]]


def test_the_texts_of_refusals_are_ec2s(ec2):
    """The codes alone are too coarse; CNIs match these texts (cilium/cilium#42512, #8830)."""
    one, two, three = (create(ec2) for _ in range(3))
    attach(ec2, one, 1)
    assert refusal(attach, ec2, two, 1) == (
        "InvalidParameterValue",
        f"Instance '{ec2.instance_id}' already has an interface attached at device index '1'.",
    )
    attach(ec2, two, 2)
    assert refusal(attach, ec2, three, 3) == (
        "AttachmentLimitExceeded",
        "Interface count 4 exceeds the limit for m5.large",
    )
    code, message = refusal(ec2.client.delete_network_interface, NetworkInterfaceId=one)
    assert (code, "is currently in use" in message) == ("InvalidParameterValue", True)
    code, message = refusal(describe, ec2, "eni-00000000000000000")
    assert code == "InvalidNetworkInterfaceID.NotFound"
    assert message == "The networkInterface ID 'eni-00000000000000000' does not exist"


def test_only_network_card_0_is_there(ec2):
    request = {"InstanceId": ec2.instance_id, "DeviceIndex": 1}
    eni = create(ec2)
    call = ec2.client.attach_network_interface
    code, _ = refusal(call, NetworkInterfaceId=eni, NetworkCardIndex=1, **request)
    assert code == "InvalidParameterValue"
    answer = call(NetworkInterfaceId=eni, NetworkCardIndex=0, **request)
    assert answer["NetworkCardIndex"] == 0


def test_an_eni_that_is_still_attaching_fills_its_device_and_counts(ec2):
    ec2.cloud.faults.set(attachDelaySeconds=60)
    one, two = create(ec2), create(ec2)
    attach(ec2, one, 1)
    assert describe(ec2, one)["Attachment"]["Status"] == "attaching"
    assert refusal(attach, ec2, two, 1)[0] == "InvalidParameterValue"
    assert refusal(attach, ec2, one, 2)[0] == "InvalidParameterValue"
    assert refusal(ec2.client.delete_network_interface, NetworkInterfaceId=one)[0] == (
        "InvalidParameterValue"
    )


def test_modifying_names_the_right_attachment(ec2):
    eni = create(ec2)
    attach(ec2, eni)
    wrong = {"AttachmentId": "eni-attach-00000000000000000", "DeleteOnTermination": True}
    call = ec2.client.modify_network_interface_attribute
    code, _ = refusal(call, NetworkInterfaceId=eni, Attachment=wrong)
    assert code == "InvalidAttachmentID.NotFound"
    assert describe(ec2, eni)["Attachment"]["DeleteOnTermination"] is False


def test_delete_on_termination_can_be_taken_back_also_from_the_primary(ec2):
    eni = primary(ec2)
    assert eni.delete_on_termination, "what EC2 makes with an instance goes with it"
    ec2.client.modify_network_interface_attribute(
        NetworkInterfaceId=eni.eni_id,
        Attachment={"AttachmentId": eni.attachment_id, "DeleteOnTermination": False},
    )
    ec2.client.terminate_instances(InstanceIds=[ec2.instance_id])
    assert [(e.eni_id, e.status) for e in ec2.cloud.enis()] == [(eni.eni_id, "available")]


# -- what goes wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(("when", "made"), [("before", 0), ("after", 1)])
def test_a_lost_answer_is_a_closed_connection_not_an_http_error(ec2, when, made):
    before = len(ec2.cloud.enis())
    lost = {"action": "CreateNetworkInterface", "code": None, "when": when}
    ec2.cloud.faults.set(errors=[lost])
    with pytest.raises(ConnectionClosedError):
        create(ec2)
    assert len(ec2.cloud.enis()) == before + made
    assert ec2.cloud.faults.failed() == {"CreateNetworkInterface": 1}


def test_the_same_token_after_a_lost_answer_finds_the_eni(ec2):
    lost = {"action": "CreateNetworkInterface", "code": None, "when": "after"}
    ec2.cloud.faults.set(errors=[lost])
    with pytest.raises(ConnectionClosedError):
        create(ec2, ClientToken="t")
    known = {e.eni_id for e in ec2.cloud.enis()}
    assert create(ec2, ClientToken="t") in known
    assert {e.eni_id for e in ec2.cloud.enis()} == known


def test_everything_is_throttled_together(ec2):
    ec2.cloud.faults.set(throttle={"*": [2, 0]})
    ec2.client.describe_subnets()
    ec2.client.describe_vpcs()
    with pytest.raises(ClientError) as caught:
        create(ec2)
    answer = caught.value.response
    assert answer["Error"]["Code"] == "RequestLimitExceeded"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert len(ec2.cloud.enis()) == 1
    assert ec2.cloud.faults.calls() == {
        "DescribeSubnets": 1,
        "DescribeVpcs": 1,
        "CreateNetworkInterface": 1,
    }


def test_the_past_is_shown_whole_and_never_a_mix(ec2, monkeypatch):
    """Addresses, tags and attachment of one moment, from a clock the test turns."""

    class Clock:
        now_s = time.monotonic()

        @classmethod
        def monotonic(cls) -> float:
            return cls.now_s

    monkeypatch.setattr(lab_ec2, "time", Clock)
    eni = create(ec2)
    then = describe(ec2, eni)
    Clock.now_s += 10
    ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=1
    )
    ec2.client.create_tags(Resources=[eni], Tags=[{"Key": "k", "Value": "v"}])
    attach(ec2, eni)
    now = describe(ec2, eni)
    ec2.cloud.faults.set(staleEc2Seconds=5)
    assert describe(ec2, eni) == then
    assert found(ec2, attachment__instance_id=ec2.instance_id) == [primary(ec2).eni_id]
    assert found(ec2, tag_key="k") == []
    assert next(e for e in ec2.cloud.enis() if e.eni_id == eni).status == "attached"
    Clock.now_s += 5
    assert describe(ec2, eni) == now
    ec2.cloud.faults.set(staleEc2Seconds=16)
    assert refusal(describe, ec2, eni)[0] == "InvalidNetworkInterfaceID.NotFound"


def test_many_callers_at_once_get_an_address_each(ec2):
    """Stock moto has no locks; here every call is alone."""
    eni = create(ec2)
    answers: list[str] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        for _ in range(5):
            answer = ec2.client.assign_private_ip_addresses(
                NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=2
            )
            answers.extend(a["PrivateIpAddress"] for a in answer["AssignedPrivateIpAddresses"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(set(answers)) == 80
    held = [a["PrivateIpAddress"] for a in describe(ec2, eni)["PrivateIpAddresses"]]
    assert sorted(held[1:]) == sorted(answers)
