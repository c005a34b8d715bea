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


def tagged(ec2: Any, subnet: str = "nodes-a", **tags: str) -> str:
    pairs = [{"Key": k, "Value": v} for k, v in tags.items()]
    specification = {"ResourceType": "network-interface", "Tags": pairs}
    return create(ec2, subnet, TagSpecifications=[specification])


def test_all_filters_of_a_search_for_left_over_enis_hold_together(ec2):
    """What a reconciler asks to find the ENIs its dead neighbours left."""
    mine = [tagged(ec2, "pods-a", cluster="c1", node=n) for n in ("i-1", "i-2")]
    attached = tagged(ec2, "nodes-a", cluster="c1", node="i-1")
    attach(ec2, attached)
    elsewhere = tagged(ec2, "pods-b", cluster="c1", node="i-1")
    foreign = tagged(ec2, "pods-a", cluster="c2", node="i-1")
    unmarked = tagged(ec2, "pods-a", cluster="c1")
    third = tagged(ec2, "pods-a", cluster="c1", node="i-3")
    wanted = [
        {"Name": "tag:cluster", "Values": ["c1"]},
        {"Name": "tag:node", "Values": ["i-1", "i-2"]},
        {"Name": "tag-key", "Values": ["node", "other"]},
        {"Name": "status", "Values": ["available"]},
        {"Name": "subnet-id", "Values": [ec2.subnets[n] for n in ("nodes-a", "pods-a")]},
        {"Name": "vpc-id", "Values": [ec2.vpc_id]},
        {"Name": "requester-managed", "Values": ["false"]},
    ]

    def ids(filters: list[dict[str, Any]]) -> set[str]:
        answer = ec2.client.describe_network_interfaces(Filters=filters)
        return {e["NetworkInterfaceId"] for e in answer["NetworkInterfaces"]}

    assert ids(wanted) == set(mine)
    without = {f["Name"]: ids([g for g in wanted if g is not f]) - set(mine) for f in wanted}
    assert without == {
        "tag:cluster": {foreign},
        "tag:node": {third},
        "tag-key": set(),
        "status": {attached},
        "subnet-id": {elsewhere},
        "vpc-id": set(),
        "requester-managed": set(),
    }
    assert unmarked not in ids([{"Name": "tag-key", "Values": ["node", "other"]}])
    assert ids([{"Name": "requester-managed", "Values": ["true"]}]) == set()


def test_pages_of_a_filtered_search_hold_what_fits_and_nothing_else(ec2):
    wanted = []
    for n in range(7):
        wanted.append(tagged(ec2, node=f"i-{n}"))
        create(ec2)
    filters = [
        {"Name": "tag:node", "Values": ["i-*"]},
        {"Name": "status", "Values": ["available"]},
    ]
    paginator = ec2.client.get_paginator("describe_network_interfaces")
    pages = list(paginator.paginate(Filters=filters, PaginationConfig={"PageSize": 5}))
    found_ids = [[e["NetworkInterfaceId"] for e in p["NetworkInterfaces"]] for p in pages]
    assert found_ids == [wanted[:5], wanted[5:]]


def test_every_eni_says_that_no_service_manages_it(ec2):
    create(ec2)
    described = ec2.client.describe_network_interfaces()["NetworkInterfaces"]
    assert [e["RequesterManaged"] for e in described] == [False, False]


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


def test_a_type_with_one_network_card_has_no_other(ec2):
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


def test_nothing_is_attached_to_a_terminated_instance(ec2):
    eni = create(ec2)
    ec2.client.terminate_instances(InstanceIds=[ec2.instance_id])
    assert refusal(attach, ec2, eni)[0] == "IncorrectInstanceState"
    assert describe(ec2, eni)["Status"] == "available"


def test_a_type_of_several_network_cards_has_the_enis_of_its_first(ec2):
    """p4d.24xlarge: 60 ENIs, 15 to each of four cards."""
    spec = {"DeviceIndex": 0, "SubnetId": ec2.subnets["nodes-a"]}
    made = ec2.client.run_instances(
        ImageId="ami-12c6146b",
        InstanceType="p4d.24xlarge",
        MinCount=1,
        MaxCount=1,
        NetworkInterfaces=[spec],
    )
    ec2.instance_id = made["Instances"][0]["InstanceId"]
    for index in range(1, 15):
        attach(ec2, create(ec2), index)
    assert refusal(attach, ec2, create(ec2), 15)[0] == "AttachmentLimitExceeded"


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


def lists(ec2: Any, eni: str) -> tuple[list[str], list[str]]:
    body = describe(ec2, eni)
    return (
        [a["PrivateIpAddress"] for a in body["PrivateIpAddresses"]],
        [p["Ipv4Prefix"] for p in body["Ipv4Prefixes"]],
    )


def test_lists_of_describe_end_where_the_lab_says_but_the_primary_is_always_there(ec2):
    eni = create(
        ec2,
        PrivateIpAddresses=[
            {"PrivateIpAddress": "10.0.1.200"},
            {"PrivateIpAddress": "10.0.1.201"},
            {"PrivateIpAddress": "10.0.1.100", "Primary": True},
        ],
        Ipv4Prefixes=[{"Ipv4Prefix": p} for p in ("10.0.1.32/28", "10.0.1.64/28")],
    )
    whole = (["10.0.1.100", "10.0.1.200", "10.0.1.201"], ["10.0.1.32/28", "10.0.1.64/28"])
    cut = {}
    for limit in (0, 1, 2, None):
        ec2.cloud.faults.set(truncateEc2=limit)
        cut[limit] = lists(ec2, eni)
        assert describe(ec2, eni)["PrivateIpAddress"] == "10.0.1.100"
    assert cut == {
        0: (["10.0.1.100"], []),
        1: (["10.0.1.100", "10.0.1.200"], ["10.0.1.32/28"]),
        2: whole,
        None: whole,
    }


def test_what_describe_cuts_is_still_held_found_and_answered_by_other_calls(ec2):
    ec2.cloud.faults.set(truncateEc2=0)
    made = ec2.client.create_network_interface(
        SubnetId=ec2.subnets["nodes-a"], SecondaryPrivateIpAddressCount=2
    )["NetworkInterface"]
    eni, held = made["NetworkInterfaceId"], made["PrivateIpAddresses"]
    assert len(held) == 3
    hidden = held[2]["PrivateIpAddress"]
    assert found(ec2, addresses__private_ip_address=hidden) == [eni]
    code, _ = refusal(create, ec2, PrivateIpAddress=hidden)
    assert code == "InvalidIPAddress.InUse"
    ec2.client.unassign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=[hidden])
    ec2.cloud.faults.clear()
    assert len(lists(ec2, eni)[0]) == 2


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
