"""The lab's instance metadata over HTTP: what the SDK reads, listings, age, who asks."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.utils import InstanceMetadataFetcher, InstanceMetadataRegionFetcher
from werkzeug.serving import make_server

import lab.ec2
import lab.imds
from lab.imds import Imds

LATEST = "/latest/meta-data"
MACS = f"{LATEST}/network/interfaces/macs"


class Clock:
    """In place of the time module: it stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def monotonic(self) -> float:
        return self.now_s


class Node:
    """Somebody on an instance; the test says with which source address."""

    def __init__(self, ec2: Any, port: int) -> None:
        self.source = "10.0.1.10"
        self.url = f"http://127.0.0.1:{port}"
        self.token = ""
        self._imds = Imds(ec2.cloud)

    def app(self, environ: dict[str, Any], start_response: Any) -> Any:
        return self._imds(environ | {"REMOTE_ADDR": self.source}, start_response)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(self.url + path, method=method)
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        if self.token:
            request.add_header("X-aws-ec2-metadata-token", self.token)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert answer.headers.get_content_type() == "text/plain"
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def sign_in(self, ttl_s: int = 60) -> None:
        lifetime = {"X_aws_ec2_metadata_token_ttl_seconds": str(ttl_s)}
        code, self.token = self.ask("/latest/api/token", "PUT", **lifetime)
        assert code == 200

    def get(self, path: str) -> str:
        code, body = self.ask(path)
        assert code == 200, path
        return body

    def lines(self, path: str) -> list[str]:
        return self.get(path).split("\n")


@pytest.fixture
def stranger(ec2: Any) -> Iterator[Node]:
    """A node that has not asked for a token."""
    server = make_server("127.0.0.1", 0, lambda e, s: node.app(e, s), threaded=True)
    node = Node(ec2, server.port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield node
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def node(stranger: Node) -> Node:
    stranger.sign_in()
    return stranger


def create(ec2: Any, **arguments: Any) -> dict[str, Any]:
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets["nodes-a"], **arguments)
    body: dict[str, Any] = made["NetworkInterface"]
    return body


def attach(ec2: Any, eni: dict[str, Any]) -> str:
    answer = ec2.client.attach_network_interface(
        NetworkInterfaceId=eni["NetworkInterfaceId"], InstanceId=ec2.instance_id, DeviceIndex=1
    )
    return str(answer["AttachmentId"])


# -- tokens -------------------------------------------------------------------------------


def test_the_sdk_gets_credentials_and_the_region(stranger):
    fetcher = InstanceMetadataFetcher(base_url=stranger.url, num_attempts=1)
    credentials = fetcher.retrieve_iam_role_credentials()
    assert credentials["role_name"] == stranger_role(stranger)
    assert {"access_key", "secret_key", "token", "expiry_time"} <= credentials.keys()
    region = InstanceMetadataRegionFetcher(base_url=stranger.url, num_attempts=1)
    assert region.retrieve_region() == "us-east-1"


def stranger_role(node: Node) -> str:
    node.sign_in()
    return node.get(f"{LATEST}/iam/security-credentials/")


def test_a_token_is_good_for_as_long_as_was_asked(stranger, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(lab.imds, "time", clock)
    stranger.sign_in(ttl_s=30)
    clock.now_s += 29
    stranger.get(f"{LATEST}/instance-id")
    clock.now_s += 2
    assert stranger.ask(f"{LATEST}/instance-id")[0] == 401
    stranger.sign_in(ttl_s=30)
    stranger.get(f"{LATEST}/instance-id")


def test_a_made_up_token_is_no_token(stranger):
    stranger.token = "made-up"
    assert stranger.ask(f"{LATEST}/instance-id")[0] == 401


def test_a_token_is_asked_for_with_put_and_a_life(stranger):
    assert stranger.ask("/latest/api/token", "PUT")[0] == 400
    lifetime = {"X_aws_ec2_metadata_token_ttl_seconds": "60"}
    assert stranger.ask("/latest/api/token", "GET", **lifetime)[0] == 405


def test_nothing_can_be_changed(node):
    assert node.ask(f"{LATEST}/instance-id", "POST")[0] == 405


# -- the tree -----------------------------------------------------------------------------


def test_the_instance_is_what_ec2_says_it_is(ec2, node):
    (reservation,) = ec2.client.describe_instances()["Reservations"]
    (instance,) = reservation["Instances"]
    assert node.get(f"{LATEST}/instance-id") == instance["InstanceId"]
    assert node.get(f"{LATEST}/instance-type") == instance["InstanceType"] == "m5.large"
    assert node.get(f"{LATEST}/ami-id") == instance["ImageId"]
    assert node.get(f"{LATEST}/local-ipv4") == instance["PrivateIpAddress"] == "10.0.1.10"
    zone = instance["Placement"]["AvailabilityZone"]
    assert node.get(f"{LATEST}/placement/availability-zone") == zone
    assert node.get(f"{LATEST}/mac") == instance["NetworkInterfaces"][0]["MacAddress"]


def test_directories_are_listed_with_slashes_after_directories(node):
    listing = node.lines(f"{LATEST}/")
    assert {"instance-id", "mac", "network/", "placement/", "iam/"} <= set(listing)
    assert node.lines(f"{LATEST}/network/interfaces/") == ["macs/"]
    mac = node.get(f"{LATEST}/mac")
    assert node.lines(f"{MACS}/") == [f"{mac}/"]
    assert node.lines(f"{MACS}/{mac}") == node.lines(f"{MACS}/{mac}/")


def test_every_listed_key_can_be_read(node):
    """The tree is walked as cloud-init walks it."""
    waiting, leaves = [f"{LATEST}/"], 0
    while waiting:
        directory = waiting.pop()
        for name in node.lines(directory):
            if name.endswith("/"):
                waiting.append(directory + name)
            else:
                assert node.get(directory + name)
                leaves += 1
    assert leaves > 15


def test_an_eni_is_told_with_all_it_has(ec2, node):
    eni = create(ec2, SecondaryPrivateIpAddressCount=2, Ipv4PrefixCount=2)
    attach(ec2, eni)
    mac = f"{MACS}/{eni['MacAddress']}"
    want = {
        "interface-id": [eni["NetworkInterfaceId"]],
        "device-number": ["1"],
        "network-card": ["0"],
        "mac": [eni["MacAddress"]],
        "owner-id": [eni["OwnerId"]],
        "subnet-id": [ec2.subnets["nodes-a"]],
        "vpc-id": [ec2.vpc_id],
        "security-group-ids": [g["GroupId"] for g in eni["Groups"]],
        "local-ipv4s": [a["PrivateIpAddress"] for a in eni["PrivateIpAddresses"]],
        "ipv4-prefix": [p["Ipv4Prefix"] for p in eni["Ipv4Prefixes"]],
        "subnet-ipv4-cidr-block": ["10.0.1.0/24"],
        "vpc-ipv4-cidr-block": ["10.0.0.0/16"],
        "vpc-ipv4-cidr-blocks": ["10.0.0.0/16", "100.64.0.0/16"],
    }
    assert {key: node.lines(f"{mac}/{key}") for key in want} == want
    assert want["local-ipv4s"][0] == eni["PrivateIpAddress"]


def test_ipv6_is_told_where_there_is_some(ec2, node):
    block = ec2.client.associate_vpc_cidr_block(VpcId=ec2.vpc_id, AmazonProvidedIpv6CidrBlock=True)
    cidr = block["Ipv6CidrBlockAssociation"]["Ipv6CidrBlock"].replace("/56", "/64")
    ec2.client.associate_subnet_cidr_block(SubnetId=ec2.subnets["nodes-a"], Ipv6CidrBlock=cidr)
    eni = create(ec2, Ipv6PrefixCount=1)
    attach(ec2, eni)
    mac = f"{MACS}/{eni['MacAddress']}"
    assert node.lines(f"{mac}/ipv6-prefix") == [eni["Ipv6Prefixes"][0]["Ipv6Prefix"]]
    assert node.ask(f"{mac}/ipv6s")[0] == 404
    assert node.lines(f"{mac}/vpc-ipv6-cidr-blocks") == [cidr.replace("/64", "/56")]
    answer = ec2.client.assign_ipv6_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], Ipv6AddressCount=2
    )
    assert node.lines(f"{mac}/ipv6s") == answer["AssignedIpv6Addresses"]


@pytest.mark.parametrize("path", ["/", "/nonsense", "/latest/nonsense", f"{LATEST}/mac/more"])
def test_what_is_not_there_is_404(node, path):
    assert node.ask(path)[0] == 404


# -- time ---------------------------------------------------------------------------------


def test_an_eni_is_told_only_while_it_is_attached(ec2, node):
    eni = create(ec2)
    mac = f"{eni['MacAddress']}/"
    ec2.cloud.faults.set(attachDelaySeconds=60)
    attachment = attach(ec2, eni)
    assert mac not in node.lines(f"{MACS}/"), "it is still attaching"
    ec2.client.detach_network_interface(AttachmentId=attachment)
    ec2.cloud.faults.set(attachDelaySeconds=0, detachDelaySeconds=60)
    attachment = attach(ec2, eni)
    assert mac in node.lines(f"{MACS}/")
    ec2.client.detach_network_interface(AttachmentId=attachment)
    assert mac not in node.lines(f"{MACS}/"), "it is detaching"
    assert node.ask(f"{MACS}/{mac}local-ipv4s")[0] == 404


def test_changes_are_told_at_once_or_as_late_as_the_lab_says(ec2, node, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(lab.ec2, "time", clock)
    ec2.client.describe_network_interfaces()
    node.sign_in(ttl_s=600)
    eni = next(e for e in ec2.cloud.enis() if e.device_index == 0)
    path = f"{MACS}/{eni.mac}/local-ipv4s"
    clock.now_s += 60
    ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=eni.eni_id, PrivateIpAddresses=["10.0.1.99"]
    )
    assert node.lines(path) == ["10.0.1.10", "10.0.1.99"]
    ec2.cloud.faults.set(staleImdsSeconds=30)
    assert node.lines(path) == ["10.0.1.10"]
    answer = ec2.client.describe_network_interfaces(NetworkInterfaceIds=[eni.eni_id])
    held = answer["NetworkInterfaces"][0]["PrivateIpAddresses"]
    assert len(held) == 2, "EC2 has a switch of its own"
    clock.now_s += 30
    assert node.lines(path) == ["10.0.1.10", "10.0.1.99"]


def test_every_list_of_addresses_can_be_cut_short_and_nothing_else(ec2, node):
    eni = create(ec2, SecondaryPrivateIpAddressCount=3, Ipv4PrefixCount=2)
    attach(ec2, eni)
    mac = f"{MACS}/{eni['MacAddress']}"
    ec2.cloud.faults.set(truncateImds=1)
    assert node.lines(f"{mac}/local-ipv4s") == [eni["PrivateIpAddress"]]
    assert len(node.lines(f"{mac}/ipv4-prefix")) == 1
    assert len(node.lines(f"{mac}/vpc-ipv4-cidr-blocks")) == 2
    assert len(node.lines(f"{MACS}/")) == 2
    ec2.cloud.faults.clear()
    assert len(node.lines(f"{mac}/local-ipv4s")) == 4


def test_cut_to_nothing_the_lists_are_there_and_empty(ec2, node):
    eni = create(ec2, SecondaryPrivateIpAddressCount=3, Ipv4PrefixCount=2)
    attach(ec2, eni)
    mac = f"{MACS}/{eni['MacAddress']}"
    ec2.cloud.faults.set(truncateImds=0)
    assert node.get(f"{mac}/local-ipv4s") == ""
    assert node.get(f"{mac}/ipv4-prefix") == ""
    assert node.get(f"{mac}/interface-id") == eni["NetworkInterfaceId"]
    assert node.get(f"{LATEST}/local-ipv4") == "10.0.1.10", "the instance's own is no list"


def test_an_empty_metadata_knows_the_instance_and_no_interface(ec2, node):
    mac = node.get(f"{LATEST}/mac")
    keys = node.lines(f"{MACS}/{mac}/")
    everything = node.lines(f"{LATEST}/")
    ec2.cloud.faults.set(emptyImds=True)
    assert node.get(f"{MACS}/") == ""
    assert {node.ask(f"{MACS}/{mac}{rest}")[0] for rest in ["", *(f"/{k}" for k in keys)]} == {404}
    assert node.lines(f"{LATEST}/") == everything
    assert node.get(f"{LATEST}/instance-id") == ec2.instance_id
    assert node.get(f"{LATEST}/mac") == mac
    assert node.get(f"{LATEST}/placement/availability-zone") == "us-east-1a"
    assert node.get("/latest/dynamic/instance-identity/document")
    ec2.cloud.faults.clear()
    assert node.lines(f"{MACS}/{mac}/") == keys


def test_an_efa_only_eni_is_told_without_addresses(ec2, node):
    """As real metadata does (aws/amazon-vpc-cni-k8s#3047)."""
    eni = create(ec2, InterfaceType="efa-only")
    attach(ec2, eni)
    mac = f"{MACS}/{eni['MacAddress']}"
    assert "local-ipv4s" not in node.lines(f"{mac}/")
    assert node.ask(f"{mac}/local-ipv4s")[0] == 404
    assert node.get(f"{mac}/device-number") == "1"
    assert node.get(f"{mac}/subnet-ipv4-cidr-block") == "10.0.1.0/24"


# -- who asks -----------------------------------------------------------------------------


def test_two_instances_are_told_of_themselves(ec2, node):
    spec = {"DeviceIndex": 0, "SubnetId": ec2.subnets["nodes-b"], "PrivateIpAddress": "10.0.2.10"}
    made = ec2.client.run_instances(
        ImageId="ami-12c6146b",
        InstanceType="t3.micro",
        MinCount=1,
        MaxCount=1,
        NetworkInterfaces=[spec],
    )["Instances"][0]
    assert node.get(f"{LATEST}/instance-id") == ec2.instance_id
    node.source = "10.0.2.10"
    assert node.get(f"{LATEST}/instance-id") == made["InstanceId"]
    assert node.get(f"{LATEST}/instance-type") == "t3.micro"
    assert node.get(f"{LATEST}/placement/availability-zone") == "us-east-1b"
    assert len(node.lines(f"{MACS}/")) == 1


def test_a_pod_with_an_address_out_of_a_prefix_is_its_instance(ec2, node):
    eni = create(ec2, Ipv4Prefixes=[{"Ipv4Prefix": "10.0.1.64/28"}])
    attachment = attach(ec2, eni)
    node.source = "10.0.1.70"
    assert node.get(f"{LATEST}/instance-id") == ec2.instance_id
    ec2.client.detach_network_interface(AttachmentId=attachment)
    assert node.ask(f"{LATEST}/instance-id")[0] == 404
