"""What instance metadata answers, read with distrust: each text has its form and its bound."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network

from reconciler.core.datapath import IpNetwork, host_network
from reconciler.core.facts import Node
from reconciler.targets.imds.bounded_http import MissingError
from reconciler.targets.values import IPV4, like, network

Get = Callable[[str], str]
"""Reads one key below ``meta-data``; raises ``MissingError`` where there is none."""

MAX_INTERFACES = 128
"""Interfaces of one instance, on all network cards; the most that any type has are 64."""

MAX_ITEMS = 256
"""Lines of one list: an ENI holds at most 64 addresses or prefixes, and a VPC 50 CIDR blocks."""

MAC = like(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
INSTANCE_ID = like(r"i-[0-9A-Za-z]{1,32}")
INSTANCE_TYPE = like(r"[a-z0-9][a-z0-9.-]{0,63}")
TOKEN = like(r"[!-~]{1,1024}")
"""A session's token; the real service's have 56 characters."""

PLACE = like(r"[a-z][a-z0-9-]{0,63}")
"""A region, which becomes part of a host's name, or a zone."""

VPC_CIDR = network(IPv4Network, range(16, 29))
"""A VPC's IPv4 CIDR block, or a subnet's (VPC user guide, "VPC CIDR blocks")."""

VPC_CIDR_IPV6 = network(IPv6Network, range(32, 65))
"""The same of IPv6, those an owner brings included. Source as above."""

SUBNET_CIDR_IPV6 = network(IPv6Network, range(44, 65))
"""The same of a subnet's (VPC user guide, "Subnet CIDR blocks")."""

PREFIX = network(IPv4Network, [28])
PREFIX_IPV6 = network(IPv6Network, [80])


def read_token(text: str) -> str:
    """Read a session's token, which becomes a header's value.

    Raises:
        ValueError: it is none.
    """
    return TOKEN.take("token", text)


def read_node(get: Get) -> Node:
    """Read the node's identity and its VPC's CIDRs.

    Raises:
        ValueError: a key is missing, or is not what it must be. A CIDR block that is left out
            would have pods' packets translated that must not be, so all are read or none.
    """
    mac = MAC.take("mac", get("mac").lower())
    base = f"network/interfaces/macs/{mac}"
    key = f"{base}/vpc-ipv4-cidr-blocks"
    cidrs: set[IpNetwork] = {VPC_CIDR.take(key, t) for t in _items(key, get(key))}
    if not cidrs:
        raise ValueError("the VPC is said to have no CIDR, which no VPC has")
    key = f"{base}/vpc-ipv6-cidr-blocks"
    cidrs |= {VPC_CIDR_IPV6.take(key, t) for t in _items(key, _optional(get, key))}
    key, key6 = f"{base}/subnet-ipv4-cidr-block", f"{base}/subnet-ipv6-cidr-blocks"
    subnet: list[IpNetwork] = [VPC_CIDR.take(key, t) for t in _items(key, _optional(get, key))]
    subnet += [SUBNET_CIDR_IPV6.take(key6, t) for t in _items(key6, _optional(get, key6))]
    return Node(
        instance_id=INSTANCE_ID.take("instance-id", get("instance-id")),
        instance_type=INSTANCE_TYPE.take("instance-type", get("instance-type")),
        availability_zone=PLACE.take("zone", get("placement/availability-zone")),
        primary_mac=mac,
        vpc_cidrs=tuple(sorted(cidrs, key=lambda n: (n.version, n))),
        subnet_cidrs=tuple(subnet),
    )


def read_region(get: Get) -> str:
    """Read the region.

    Raises:
        ValueError: it is missing, or is none.
    """
    return PLACE.take("region", get("placement/region"))


def read_interfaces(get: Get) -> frozenset[tuple[str, IpNetwork]]:
    """Read what every interface holds; primary addresses are left out.

    Raises:
        ValueError: something is not what it must be. Half a list is no witness.
    """
    held: set[tuple[str, IpNetwork]] = set()
    key = "network/interfaces/macs/"
    for name in _items(key, get(key), MAX_INTERFACES):
        mac = MAC.take(key, name.rstrip("/").lower())
        base = f"network/interfaces/macs/{mac}"
        # An interface without addresses has no such key (aws/amazon-vpc-cni-k8s#3047).
        key4, key28, key80 = (f"{base}/{k}" for k in ("local-ipv4s", "ipv4-prefix", "ipv6-prefix"))
        for text in _items(key4, _optional(get, key4))[1:]:
            held.add((mac, host_network(IPV4.take(key4, text))))
        for text in _items(key28, _optional(get, key28)):
            held.add((mac, PREFIX.take(key28, text)))
        for text in _items(key80, _optional(get, key80)):
            held.add((mac, PREFIX_IPV6.take(key80, text)))
    return frozenset(held)


def _optional(get: Get, key: str) -> str:
    """Read a key that may not exist: a list without entries has none."""
    try:
        return get(key)
    except MissingError:
        return ""


def _items(key: str, text: str, most: int = MAX_ITEMS) -> list[str]:
    found = text.split(maxsplit=most)
    if len(found) > most:
        raise ValueError(f"{key} has more than {most} entries")
    return found
