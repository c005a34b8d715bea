"""The VPC router's advertisement: how an instance learns its IPv6 default route.

A VPC sends router advertisements on every ENI, with the flags "managed" and "other", so that
addresses come by DHCPv6 (EC2 user guide, "Configure your instances for IPv6"), and without a
prefix to be on link: everything goes by the router.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address

ROUTER = IPv6Address("fe80:ec2::1")
"""The VPC router on every ENI (VPC user guide, "Subnet sizing": ``fe80:ec2::1`` is reserved)."""

LIFETIME_S = 65535
"""Seconds, the longest there is (RFC 8319 section 4): a lab's router never stops being one."""

ALL_NODES = "ff02::1"
TYPE = 134
MANAGED_AND_OTHER = 0xC0
HOPS = 255
"""RFC 4861 section 6.1.2: a receiver takes none that has passed a router."""


def advertise(link: str) -> None:
    """Send one advertisement out of a link of this namespace that has the router's address.

    Raises:
        OSError: the link is gone, or has not got the address.
    """
    index = socket.if_nametoindex(link)
    # Hop limit and timers of 0: unspecified. The kernel puts in the checksum.
    body = struct.pack("!BBHBBHII", TYPE, 0, 0, 64, MANAGED_AND_OTHER, LIFETIME_S, 0, 0)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as s:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
        s.bind((str(ROUTER), 0, 0, index))
        s.sendto(body, (ALL_NODES, 0, 0, index))
