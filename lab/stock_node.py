"""A node of the lab as amazon-vpc-cni-k8s leaves it: ENIs in EC2, pods, kernel objects.

For rehearsals of a migration, and its tests. ``stock`` has the kernel objects.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from lab import netns, stock
from lab.ec2_client import open_ec2
from lab.lifecycle import Lab, LabError
from lab.stock import StockEni, StockNode, StockPod
from lab.topology import INSTANCES, SUBNETS

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import TagTypeDef

PATIENCE_S = 30.0
"""Seconds that ENIs may take to attach."""


def make(lab: Lab, node: str, pods: Sequence[int], *, spare: int = 2, **choices: Any) -> StockNode:
    """Lay a node out.

    Args:
        lab: where.
        node: which node; it has its primary ENI, and nothing has run there yet.
        pods: how many run on each ENI, the primary first.
        spare: addresses of each ENI that no pod has.
        choices: how the plugin is configured, as ``StockNode`` says.

    Raises:
        LabError: the lab does not answer, or an ENI is not attached in time.
        StockError: a kernel object could not be made.
    """
    enis = _fill_enis(lab, node, [number + spare for number in pods])
    made: list[StockPod] = []
    for device, told in enumerate(lab.enis(node)):
        free = [a for a in told["addresses"] if a != told["primary"]]
        for number in range(pods[device]):
            name = f"s{device}x{number}"
            namespace = lab.names.namespace(f"pod-{name}")
            address = IPv4Address(free[number])
            sandbox = f"{lab.names.lab}-{name}"
            made.append(StockPod("default", name, address, namespace, device, sandbox))
            netns.make(namespace)
    laid = StockNode(enis, tuple(made), **choices)
    stock.apply(lab.names.namespace(node), stock.layout(laid))
    stock.write_checkpoint(made, lab.names.stock_plugin(node) / stock.CHECKPOINT.name)
    return laid


def tag(instance_id: str) -> list[TagTypeDef]:
    """Return what the plugin writes on its ENIs (``pkg/awsutils/awsutils.go``)."""
    tags = {
        "node.k8s.amazonaws.com/instance_id": instance_id,
        "node.k8s.amazonaws.com/createdAt": "2026-01-01T00:00:00Z",
        "cluster.k8s.amazonaws.com/name": "prod",
        "eks:eni:owner": "amazon-vpc-cni",
    }
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _fill_enis(lab: Lab, node: str, addresses: Sequence[int]) -> tuple[StockEni, ...]:
    """Create, tag and fill ENIs as the plugin's daemon does; return them as it sees them."""
    (primary,) = lab.enis(node)
    instance_id = lab.ask("status")["instances"][node]
    with netns.inside(lab.names.namespace(node)):
        ec2 = open_ec2()
        try:
            _fill_primary(ec2, primary["id"], instance_id, addresses[0])
            for device, number in enumerate(addresses[1:], start=1):
                _add_eni(ec2, primary["id"], instance_id, device, number)
        finally:
            ec2.close()
    names = _await_links(lab, node, len(addresses))
    its_subnet = next(i.subnet for i in INSTANCES if i.name == node)
    subnet = next(s.cidr for s in SUBNETS if s.name == its_subnet)
    return tuple(
        StockEni(e["device"], names[e["mac"]], IPv4Address(e["primary"]), subnet)
        for e in lab.enis(node)
    )


def _fill_primary(ec2: EC2Client, eni_id: str, instance_id: str, addresses: int) -> None:
    ec2.create_tags(Resources=[eni_id], Tags=tag(instance_id))
    ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=addresses
    )


def _add_eni(
    ec2: EC2Client, primary_id: str, instance_id: str, device: int, addresses: int
) -> None:
    (primary,) = ec2.describe_network_interfaces(NetworkInterfaceIds=[primary_id])[
        "NetworkInterfaces"
    ]
    made = ec2.create_network_interface(
        SubnetId=primary["SubnetId"],
        Description=f"aws-K8S-{instance_id}",
        SecondaryPrivateIpAddressCount=addresses,
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": tag(instance_id)}],
    )
    eni_id = made["NetworkInterface"]["NetworkInterfaceId"]
    attached = ec2.attach_network_interface(
        NetworkInterfaceId=eni_id, InstanceId=instance_id, DeviceIndex=device
    )
    ec2.modify_network_interface_attribute(
        NetworkInterfaceId=eni_id,
        Attachment={"AttachmentId": attached["AttachmentId"], "DeleteOnTermination": True},
    )


def _await_links(lab: Lab, node: str, number: int) -> dict[str, str]:
    """Wait for the links of so many ENIs; return their names by MAC."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        links = json.loads(lab.run(node, ["ip", "-j", "link"]).stdout)
        attached = all(e["status"] == "attached" for e in lab.enis(node))
        if attached and len(links) == 1 + number:
            return {link["address"]: link["ifname"] for link in links}
        time.sleep(0.05)
    raise LabError(
        f"lab {lab.names.lab}: {number} ENIs of {node} were not attached in {PATIENCE_S:g} s"
    )
