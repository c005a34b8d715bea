"""What a whole lab is made of, and what can be asked of it: subnets, types, a node's end."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import fork_server

from lab import lifecycle, netns
from lab.lifecycle import LabError
from lab.topology import STATE

pytestmark = pytest.mark.lab

ASK_TYPE = """
import urllib.request as http
put = http.Request("http://169.254.169.254/latest/api/token", method="PUT")
put.add_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
get = http.Request("http://169.254.169.254/latest/meta-data/instance-type")
get.add_header("X-aws-ec2-metadata-token", http.urlopen(put, timeout=5).read().decode())
print(http.urlopen(get, timeout=5).read().decode())
"""


def by_tag(client, key, value):
    wanted = [{"Name": f"tag:{key}", "Values": [value]}]
    return client.describe_subnets(Filters=wanted)["Subnets"]


def named(client, name):
    (subnet,) = by_tag(client, "Name", name)
    return subnet


def describe(client, eni):
    (body,) = client.describe_network_interfaces(NetworkInterfaceIds=[eni])["NetworkInterfaces"]
    return body


def links(lab, node):
    return [k["ifname"] for k in json.loads(lab.run(node, ["ip", "-j", "link"]).stdout)]


# -- subnets ------------------------------------------------------------------------------


def test_subnets_can_be_selected_by_the_tag_role(client):
    """Two for pods, one in the zone of each node."""
    zones = {
        role: sorted((s["AvailabilityZone"], s["CidrBlock"]) for s in by_tag(client, "role", role))
        for role in ("nodes", "pods", "hosts", "fragmented")
    }
    assert zones == {
        "nodes": [("us-east-1a", "10.0.1.0/24"), ("us-east-1b", "10.0.2.0/24")],
        "pods": [("us-east-1a", "100.64.1.0/24"), ("us-east-1b", "100.64.2.0/24")],
        "hosts": [("us-east-1a", "10.0.9.0/24")],
        "fragmented": [("us-east-1a", "100.64.3.0/26")],
    }


def test_the_fragmented_subnet_has_dozens_of_addresses_and_no_prefix(client):
    subnet = named(client, "fragmented")
    assert subnet["AvailableIpAddressCount"] == 57
    here = {"SubnetId": subnet["SubnetId"]}
    with pytest.raises(client.exceptions.ClientError, match="InsufficientCidrBlocks"):
        client.create_network_interface(**here, Ipv4PrefixCount=1)
    made = client.create_network_interface(**here, SecondaryPrivateIpAddressCount=24)
    eni = made["NetworkInterface"]["NetworkInterfaceId"]
    try:
        assert len(describe(client, eni)["PrivateIpAddresses"]) == 25
        with pytest.raises(client.exceptions.ClientError, match="InsufficientCidrBlocks"):
            client.assign_private_ip_addresses(NetworkInterfaceId=eni, Ipv4PrefixCount=1)
    finally:
        client.delete_network_interface(NetworkInterfaceId=eni)
    assert named(client, "fragmented")["AvailableIpAddressCount"] == 57


def test_who_fragments_the_subnet_is_nobody_a_reconciler_could_take_for_its_own(lab, client):
    wanted = [{"Name": "subnet-id", "Values": [named(client, "fragmented")["SubnetId"]]}]
    (eni,) = client.describe_network_interfaces(Filters=wanted)["NetworkInterfaces"]
    assert (eni["Status"], eni["TagSet"]) == ("available", [])
    held = [a["PrivateIpAddress"] for a in eni["PrivateIpAddresses"]]
    assert held == ["100.64.3.24", "100.64.3.40"]
    assert eni["PrivateIpAddress"] == held[0]
    assert eni["NetworkInterfaceId"] not in [e["id"] for e in lab.enis()], "it is no test's"


# -- types --------------------------------------------------------------------------------


def test_nodes_are_of_the_types_asked_for_and_the_others_of_their_own(name, on):
    lab = lifecycle.up(name, types={"node1": "m5.4xlarge"}, start=fork_server.start)
    told = {
        n: lab.run(n, [sys.executable, "-c", ASK_TYPE]).stdout.strip() for n in ("node1", "node2")
    }
    assert told == {"node1": "m5.4xlarge", "node2": "m5.large"}
    with on(lab, "node1") as client:
        for node, room in {"node1": 29, "node2": 9}.items():
            (primary,) = lab.enis(node)
            eni = {"NetworkInterfaceId": primary["id"]}
            client.assign_private_ip_addresses(**eni, SecondaryPrivateIpAddressCount=room)
            with pytest.raises(client.exceptions.ClientError, match="AddressLimitExceeded"):
                client.assign_private_ip_addresses(**eni, SecondaryPrivateIpAddressCount=1)


@pytest.mark.parametrize(
    ("types", "complaint"),
    [
        ({"node9": "m5.large"}, "no such node: node9; there are node1, node2"),
        ({"vpchost": "m5.large"}, "no such node: vpchost"),
        ({"node1": "m5.large", "node2": "m5.huge"}, "no such instance type: m5.huge"),
    ],
)
def test_an_unknown_node_or_type_is_refused_before_anything_is_made(
    name, monkeypatch, types, complaint
):
    made = []
    monkeypatch.setattr(netns, "make", made.append)
    with pytest.raises(ValueError, match=complaint):
        lifecycle.up(name, types=types)
    assert made == []
    assert not (STATE / name).exists()


# -- requests -----------------------------------------------------------------------------


def test_a_terminated_node_leaves_what_its_enis_say_and_the_other_node_alone(name, on):
    lab = lifecycle.up(name, start=fork_server.start)
    instance = lab.ask("status")["instances"]["node1"]
    (primary,) = lab.enis("node1")
    with on(lab, "node2") as client:
        subnet = named(client, "pods-a")["SubnetId"]
        stays, goes = (
            client.create_network_interface(SubnetId=subnet)["NetworkInterface"][
                "NetworkInterfaceId"
            ]
            for _ in range(2)
        )
        for index, eni in enumerate((stays, goes), 1):
            attachment = client.attach_network_interface(
                NetworkInterfaceId=eni, InstanceId=instance, DeviceIndex=index
            )["AttachmentId"]
            client.modify_network_interface_attribute(
                NetworkInterfaceId=eni,
                Attachment={"AttachmentId": attachment, "DeleteOnTermination": eni == goes},
            )
        assert links(lab, "node1") == ["lo", "eth0", "eth1", "eth2"]
        assert lab.ask("terminate", node="node1") == {}
        assert links(lab, "node1") == ["lo"]
        assert lab.enis("node1") == []
        left = describe(client, stays)
        assert (left["Status"], "Attachment" in left) == ("available", False)
        for gone in (goes, primary["id"]):
            with pytest.raises(client.exceptions.ClientError, match="NotFound"):
                describe(client, gone)
        (reservation,) = client.describe_instances(InstanceIds=[instance])["Reservations"]
        assert reservation["Instances"][0]["State"]["Name"] == "terminated"
        assert [e["device"] for e in lab.enis("node2")] == [0]
        client.delete_network_interface(NetworkInterfaceId=stays)


def test_no_switch_keeps_an_operator_from_terminating_and_no_count_shows_it(name):
    lab = lifecycle.up(name, start=fork_server.start)
    everything = {"denied": ["TerminateInstances"], "throttle": {"*": [0, 0]}}
    lab.ask("faults", set=everything)
    lab.ask("calls", reset=True)
    for _ in range(2):
        lab.ask("terminate", node="node2")
    assert lab.enis("node2") == []
    assert lab.ask("calls") == {"calls": {}, "failed": {}, "throttled": {}}


@pytest.mark.parametrize("words", [{"node": "node9"}, {}])
def test_a_node_that_is_not_there_cannot_be_terminated(lab, words):
    before = lab.enis()
    with pytest.raises(LabError, match="node"):
        lab.ask("terminate", **words)
    assert lab.enis() == before


def test_throttled_answers_are_told_apart_from_other_failures(lab, client):
    lab.ask("calls", reset=True)
    lab.ask("faults", set={"denied": ["DescribeVpcs"], "throttle": {"DescribeSubnets": [1, 0]}})
    try:
        client.describe_subnets()
        with pytest.raises(client.exceptions.ClientError, match="RequestLimitExceeded"):
            client.describe_subnets()
        with pytest.raises(client.exceptions.ClientError, match="UnauthorizedOperation"):
            client.describe_vpcs()
    finally:
        lab.ask("faults", clear=True)
    counted = lab.ask("calls", reset=True)
    assert counted == {
        "calls": {"DescribeSubnets": 2, "DescribeVpcs": 1},
        "failed": {"DescribeSubnets": 1, "DescribeVpcs": 1},
        "throttled": {"DescribeSubnets": 1},
    }


def test_an_efa_only_eni_fills_a_slot_of_its_node_and_makes_no_link_there(lab, client):
    instance = lab.ask("status")["instances"]["node1"]
    before = links(lab, "node1")
    made = client.create_network_interface(
        SubnetId=named(client, "nodes-a")["SubnetId"], InterfaceType="efa-only"
    )
    eni = made["NetworkInterface"]["NetworkInterfaceId"]
    attached = client.attach_network_interface(
        NetworkInterfaceId=eni, InstanceId=instance, DeviceIndex=1
    )
    try:
        assert links(lab, "node1") == before
        told = next(e for e in lab.enis("node1") if e["id"] == eni)
        assert (told["device"], told["type"], told["primary"], told["addresses"]) == (
            1,
            "efa-only",
            "",
            [],
        )
    finally:
        client.detach_network_interface(AttachmentId=attached["AttachmentId"])
        client.delete_network_interface(NetworkInterfaceId=eni)
    assert links(lab, "node1") == before
