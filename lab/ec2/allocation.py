"""Which addresses of a subnet are free; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network

PREFIX_LENGTH = 28
"""Bits of a delegated IPv4 prefix (EC2 user guide, "Prefix delegation")."""

RESERVED_LOW = 4
"""Network, router, DNS, future use; the broadcast address is reserved too (VPC user guide,
"Subnet sizing")."""


def usable(cidr: IPv4Network) -> range:
    """Return the numbers of the addresses that EC2 gives out."""
    return range(int(cidr.network_address) + RESERVED_LOW, int(cidr.broadcast_address))


def free_addresses(cidr: IPv4Network, taken: Collection[int]) -> Iterator[IPv4Address]:
    """Yield free addresses, lowest first."""
    return (IPv4Address(n) for n in usable(cidr) if n not in taken)


def free_prefixes(cidr: IPv4Network, taken: Collection[int]) -> Iterator[IPv4Network]:
    """Yield aligned blocks without a taken or reserved address, lowest first."""
    allowed = usable(cidr)
    for block in cidr.subnets(new_prefix=max(PREFIX_LENGTH, cidr.prefixlen)):
        if block.prefixlen != PREFIX_LENGTH:
            return
        numbers = range(int(block.network_address), int(block.broadcast_address) + 1)
        if all(n in allowed and n not in taken for n in numbers):
            yield block
