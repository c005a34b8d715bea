"""Subnets: what is free in them, and which one the next ENI goes to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from reconciler.core.datapath import IpNetwork
from reconciler.ipam.pool import PREFIX_SIZE

RESERVED_LOW = 4
"""Network, router, DNS, future use; the broadcast address is reserved too (VPC user guide,
"Subnet sizing")."""


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet as EC2 describes it.

    Attributes:
        free: addresses EC2 could still give out.
        blocks: whole aligned /28 blocks left; None until they are counted.
        tags: pairs in key order.
        families: those it has a CIDR block of.
        vpc_id: of its VPC; "" in a look of an earlier release.
        is_described: EC2 was asked about it; if not, ``free`` and ``blocks`` are upper bounds, and
            EC2 refuses what it does not have.
    """

    subnet_id: str
    zone: str
    cidr: IpNetwork
    free: int
    blocks: int | None = None
    tags: tuple[tuple[str, str], ...] = ()
    families: tuple[str, ...] = ("ipv4",)
    vpc_id: str = ""
    is_described: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """Which subnets new ENIs may go to, in order, and why the others may not.

    Attributes:
        rejected: (subnet id, reason).
    """

    subnets: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...] = ()


def free_blocks(cidr: IpNetwork, taken: Collection[int]) -> int:
    """Count aligned /28 blocks of an IPv4 subnet that hold no address in use or reserved.

    Args:
        cidr: the subnet's.
        taken: numbers of the addresses in use, those inside prefixes included.
    """
    if not isinstance(cidr, IPv4Network):
        return 0
    first, last = int(cidr.network_address), int(cidr.broadcast_address)
    broken = {number // PREFIX_SIZE for number in taken}
    broken |= {number // PREFIX_SIZE for number in (*range(first, first + RESERVED_LOW), last)}
    return sum(
        1 for block in range(first // PREFIX_SIZE, last // PREFIX_SIZE + 1) if block not in broken
    )


def choose(
    known: Mapping[str, Subnet],
    *,
    zone: str,
    primary: str,
    listed: tuple[str, ...],
    selector: tuple[tuple[str, str], ...],
    families: Collection[str] = ("ipv4",),
) -> Choice:
    """Say where new ENIs may go.

    An ENI can only be attached in its instance's zone and VPC (EC2 user guide, "Elastic network
    interfaces"), and the host's own address on it is of IPv4. A selector's subnets are tried in
    the order of their free space, most first.

    Args:
        known: every subnet that EC2 showed, by id.
        zone: the instance's.
        primary: the primary ENI's subnet: where ENIs go when the document names none.
        listed: ids from the document, in order.
        selector: tags that a subnet must carry, from the document.
        families: those that pods get addresses of.
    """
    if selector:
        wanted = set(selector)
        order = sorted(
            (s for s in known.values() if wanted <= set(s.tags)),
            key=lambda s: (-s.free, s.subnet_id),
        )
        names = tuple(s.subnet_id for s in order)
    else:
        names = listed or (primary,)
    home = known.get(primary)
    needed = dict.fromkeys(("ipv4", *families))
    chosen, rejected = [], []
    for name in filter(None, names):
        subnet = known.get(name)
        if subnet is None:
            rejected.append((name, "EC2 does not know it"))
        elif home is not None and subnet.vpc_id != home.vpc_id:
            rejected.append((name, f"in VPC {subnet.vpc_id}, the node is in {home.vpc_id}"))
        elif subnet.zone != zone:
            rejected.append((name, f"in zone {subnet.zone}, the node is in {zone}"))
        elif missing := [f for f in needed if f not in subnet.families]:
            rejected.append((name, f"it has no CIDR block of {' and '.join(missing)}"))
        else:
            chosen.append(name)
    return Choice(tuple(chosen), tuple(rejected))
