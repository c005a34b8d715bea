"""What the lab's VPC looks like, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

STATE = Path("/run/node-network-lab")
REGION = "us-east-1"
VPC_CIDRS = (IPv4Network("10.0.0.0/16"), IPv4Network("100.64.0.0/16"))
IPV6_POOL = IPv6Network("2001:db8:ec2::/48")
"""What the lab's Amazon gives VPCs a /56 each of, the first one first."""
VPC_IPV6_CIDR = IPv6Network("2001:db8:ec2::/56")
EC2_ENDPOINT = IPv4Address("10.0.0.10")
EC2_PORT = 8000
IMDS = IPv4Address("169.254.169.254")
PEER_CIDR = IPv4Network("10.100.0.0/16")
PEER_HOST = IPv4Address("10.100.0.10")
PEER_IPV6_CIDR = IPv6Network("2001:db8:9ee5::/64")
PEER_IPV6_HOST = IPv6Address("2001:db8:9ee5::10")
INTERNET_CIDR = IPv4Network("198.51.100.0/24")
INTERNET_HOST = IPv4Address("198.51.100.10")
INTERNET_IPV6_CIDR = IPv6Network("2001:db8:ffff::/64")
INTERNET_IPV6_HOST = IPv6Address("2001:db8:ffff::10")


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet of the VPC.

    Attributes:
        role: value of its tag "role", for those who select subnets by tag.
        occupied: held from the start by an ENI that is attached to nothing; the first is its
            primary address.
    """

    name: str
    cidr: IPv4Network
    ipv6_cidr: IPv6Network
    zone: str
    role: str
    occupied: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance; its namespace carries its name. ``second`` is in the VPC's second CIDR."""

    name: str
    type: str
    subnet: str
    address: IPv4Address
    ipv6_address: IPv6Address


def _ipv6(number: int) -> IPv6Network:
    """Return the VPC's /64 of that number, as it is written in the subnet's CIDR."""
    return IPv6Network(f"2001:db8:ec2:{number}::/64")


SUBNETS = (
    Subnet("nodes-a", IPv4Network("10.0.1.0/24"), _ipv6(1), "us-east-1a", "nodes"),
    Subnet("nodes-b", IPv4Network("10.0.2.0/24"), _ipv6(2), "us-east-1b", "nodes"),
    Subnet("tiny", IPv4Network("10.0.8.0/28"), _ipv6(8), "us-east-1a", "tiny"),
    Subnet("hosts", IPv4Network("10.0.9.0/24"), _ipv6(9), "us-east-1a", "hosts"),
    Subnet("pods-a", IPv4Network("100.64.1.0/24"), _ipv6(41), "us-east-1a", "pods"),
    Subnet("pods-b", IPv4Network("100.64.2.0/24"), _ipv6(42), "us-east-1b", "pods"),
    # Of its four blocks of 16 the outer ones hold reserved addresses, so that one address in
    # each of the others leaves 57 free and not one whole block.
    Subnet(
        "fragmented",
        IPv4Network("100.64.3.0/26"),
        _ipv6(43),
        "us-east-1a",
        "fragmented",
        (IPv4Address("100.64.3.24"), IPv4Address("100.64.3.40")),
    ),
)
INSTANCES = (
    Instance("node1", "m5.large", "nodes-a", IPv4Address("10.0.1.10"), _ipv6(1)[16]),
    Instance("node2", "m5.large", "nodes-b", IPv4Address("10.0.2.10"), _ipv6(2)[16]),
    Instance("vpchost", "t3.micro", "hosts", IPv4Address("10.0.9.10"), _ipv6(9)[16]),
    Instance("second", "t3.micro", "pods-b", IPv4Address("100.64.2.10"), _ipv6(42)[16]),
)
NODES = ("node1", "node2")

_NAME = re.compile(r"[a-z0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Names:
    """What things of one lab are called.

    Raises:
        ValueError: the lab's name is not 1 to 12 lower-case letters and digits.
    """

    lab: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.lab):
            raise ValueError(
                f"{self.lab!r}: a lab's name is 1 to 12 lower-case letters and digits"
            )

    @property
    def prefix(self) -> str:
        """Start of every namespace of this lab, and of no other lab's."""
        return f"nn-{self.lab}-"

    def namespace(self, part: str) -> str:
        """Name of a part's namespace: vpc, peer, internet, an instance, or pod-<x>."""
        return f"{self.prefix}{part}"

    @property
    def state(self) -> Path:
        """The lab's directory."""
        return STATE / self.lab

    @property
    def control(self) -> Path:
        """The server's control socket."""
        return self.state / "control.sock"

    @property
    def log(self) -> Path:
        """What the server had to say."""
        return self.state / "server.log"

    def node_state(self, node: str) -> Path:
        """State directory of a node's reconciler."""
        return self.state / node

    def plugins(self, node: str) -> Path:
        """Where a node's container runtime looks for CNI plugins."""
        return self.node_state(node) / "opt/cni/bin"

    def configurations(self, node: str) -> Path:
        """Where it looks for CNI configurations."""
        return self.node_state(node) / "etc/cni/net.d"

    def tmpfiles(self, node: str) -> Path:
        """Where it looks for what is removed at a boot; no systemd reads it."""
        return self.node_state(node) / "etc/tmpfiles.d"

    def stock_plugin(self, node: str) -> Path:
        """Where amazon-vpc-cni-k8s keeps its checkpoint on a node."""
        return self.node_state(node) / "var/run/aws-node"


def instances(types: Mapping[str, str]) -> tuple[Instance, ...]:
    """Return the lab's instances, some nodes with another type than their own.

    Raises:
        ValueError: there is no node of that name.
    """
    if unknown := sorted(types.keys() - set(NODES)):
        raise ValueError(f"no such node: {', '.join(unknown)}; there are {', '.join(NODES)}")
    return tuple(replace(i, type=types.get(i.name, i.type)) for i in INSTANCES)
