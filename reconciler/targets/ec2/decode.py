"""What EC2 answers, read with distrust, as values.

A look decides what is given back. So an object whose fields cannot be read is *unread*: it
concerns that object alone, it counts as there, and nothing is given back meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from reconciler.core.datapath import MAX_DEVICE_INDEX, IpNetwork, host_network
from reconciler.core.facts import Eni
from reconciler.ipam.cloud import (
    CREATED_TAG,
    CREATION_TAG,
    INSTANCE_TAG,
    STOCK_INSTANCE_TAG,
    UNMANAGED_TAG,
    Limits,
    Subnet,
    Unread,
    is_stock_tag,
)
from reconciler.ipam.release import unit_networks
from reconciler.targets.ec2.fields import (
    CARD_INDEX,
    DEVICE_INDEX,
    FREE,
    ID,
    MAC,
    PREFIX,
    PREFIX_IPV6,
    SUBNET_CIDR,
    SUBNET_CIDR_IPV6,
    TYPE_ADDRESSES,
    TYPE_ENIS,
    WORD,
)
from reconciler.targets.values import FLAG, IPV4, IPV6, MalformedError, Object, entries, inner

MAX_ADDRESSES = 128
"""Addresses, or prefixes, of one ENI; the largest instance types allow 64 (EC2 user guide,
"Maximum IP addresses per network interface")."""

MAX_TAGS = 100
"""Tags of one object; EC2 allows 50, those of AWS's own services not counted."""

MAX_TAG_TEXT = 256
"""Characters of a tag's key or value (EC2 user guide, "Tag restrictions": 128 and 256)."""

MAX_GROUPS = 64
"""Security groups of one ENI; the quota can be raised to 16."""

MAX_CARDS = 64
"""Network cards of one instance type; the largest have 32."""

MAX_BLOCKS = 64
"""IPv6 CIDR blocks of one subnet; EC2 allows one that is associated, and lists earlier ones."""

SERVING_TYPES = {"interface", "efa"}
"""Types of ENIs that can carry addresses for pods. Of all others (efa-only, trunk, branch, those
of AWS's own services) none is ever ours, whatever its tags say."""

ANYWHERE = IPv4Network("0.0.0.0/0")
"""In place of a subnet's CIDR block that is not known yet."""

NO_ADDRESS = IPv4Address("0.0.0.0")
"""In place of the primary address of an ENI that has none: of IPv6 alone, or EFA alone."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An ENI of a list, before its subnet is known.

    Attributes:
        eni: with ``ANYWHERE`` in place of its subnet's CIDR block.
        vpc_id: of its VPC.
    """

    eni: Eni
    vpc_id: str


def _tags(body: Object, key: str) -> dict[str, str]:
    found = {}
    for entry in entries(body, key, MAX_TAGS):
        pair = [entry.get("Key"), entry.get("Value")]
        for part in pair:
            if not isinstance(part, str) or len(part) > MAX_TAG_TEXT:
                raise MalformedError(f"a tag of {key}", part, f"a text up to {MAX_TAG_TEXT}")
        # A lone surrogate can be in JSON, and in no file or log.
        name, value = (str(part).encode(errors="replace").decode() for part in pair)
        found[name] = value
    return found


# -- ENIs ---------------------------------------------------------------------------------


def decode_interface(
    body: Object, instance_id: str, primary_mac: str = "", *, attached: bool = False
) -> Listed | None:
    """Read an ENI; None if it is on another network card, which concerns nothing here.

    Args:
        body: as DescribeNetworkInterfaces has it.
        instance_id: whose ENIs are looked at.
        attached: it is one of those that were asked for as attached to this instance.
        primary_mac: of the primary ENI, by instance metadata. Its place alone does not tell: on
            each further network card there may be one with device index 0 (EC2 user guide,
            "Elastic Fabric Adapter").

    Raises:
        MalformedError: something in it is not what it must be.
    """
    eni_id = ID.of(body, "NetworkInterfaceId")
    attachment = inner(body, "Attachment")
    here = attachment if attachment.get("InstanceId") == instance_id else {}
    if attached and not here:
        raise MalformedError("Attachment.InstanceId", attachment.get("InstanceId"), instance_id)
    mac = MAC.of(body, "MacAddress").lower()
    is_primary = bool(here) and mac == primary_mac
    tags = _tags(body, "TagSet")
    card = here.get("NetworkCardIndex")
    if card is not None and (card := CARD_INDEX.of(here, "NetworkCardIndex")):
        if is_primary or tags.get(INSTANCE_TAG) == instance_id:
            raise MalformedError("NetworkCardIndex", card, "0, of the only card that is used")
        return None
    index = DEVICE_INDEX.of(here, "DeviceIndex") if here else None
    primary = IPV4.of(body, "PrivateIpAddress") if body.get("PrivateIpAddress") else NO_ADDRESS
    if is_primary and primary == NO_ADDRESS:
        raise MalformedError("PrivateIpAddress", None, "an IPv4 address, which a node needs")
    kind = body.get("InterfaceType")
    usable = (
        (kind is None or WORD.of(body, "InterfaceType") in SERVING_TYPES)
        and tags.get(UNMANAGED_TAG) != "true"
        and primary != NO_ADDRESS
        and (index is None or index > 0)
    )
    eni = Eni(
        eni_id=eni_id,
        mac=mac,
        device_index=index,
        status=WORD.of(here or body, "Status"),
        subnet_id=ID.of(body, "SubnetId"),
        subnet_cidr=ANYWHERE,
        primary=primary,
        secondaries=_secondaries(body, primary),
        security_groups=tuple(sorted(ID.each(body, "Groups", "GroupId", MAX_GROUPS))),
        attachment_id=ID.of(here, "AttachmentId") if here else None,
        delete_on_termination=FLAG.of(attachment, "DeleteOnTermination"),
        # The primary is part of the instance; no other owner is possible.
        owned=is_primary or (usable and tags.get(INSTANCE_TAG) == instance_id),
        prefixes=tuple(sorted(PREFIX.each(body, "Ipv4Prefixes", "Ipv4Prefix", MAX_ADDRESSES))),
        creation=tags.get(CREATION_TAG, ""),
        created_at=_moment(tags.get(CREATED_TAG, "")),
        stock=usable and tags.get(STOCK_INSTANCE_TAG) == instance_id,
        stock_tags=tuple(sorted(filter(is_stock_tag, tags))),
        ipv6_prefixes=tuple(
            sorted(PREFIX_IPV6.each(body, "Ipv6Prefixes", "Ipv6Prefix", MAX_ADDRESSES))
        ),
        host_addresses=tuple(
            IPV6.of(a, "Ipv6Address") for a in entries(body, "Ipv6Addresses", MAX_ADDRESSES)
        ),
        is_primary=is_primary,
    )
    return Listed(eni, ID.of(body, "VpcId"))


def _secondaries(body: Object, primary: IPv4Address) -> tuple[IPv4Address, ...]:
    """Return single addresses for pods; the primary one is the host's, whatever its flag says."""
    found = set()
    for entry in entries(body, "PrivateIpAddresses", MAX_ADDRESSES):
        address = IPV4.of(entry, "PrivateIpAddress")
        if FLAG.of(entry, "Primary") and address != primary:
            raise MalformedError("PrivateIpAddress", str(primary), f"{address}, marked primary")
        found.add(address)
    return tuple(sorted(found - {primary}))


def place(eni: Eni, subnet: Subnet) -> Eni:
    """Put an ENI into its subnet.

    Raises:
        MalformedError: it holds what is not of that subnet, or the same twice.
    """
    held = [n for n in unit_networks(eni) if isinstance(n, IPv4Network)]
    held += [IPv4Network(eni.primary)] if eni.primary != NO_ADDRESS else []
    for network in held:
        inside = isinstance(subnet.cidr, IPv4Network) and network.subnet_of(subnet.cidr)
        if not inside:
            raise MalformedError("an address", str(network), f"one of its subnet, {subnet.cidr}")
    for address in (eni.primary, *eni.secondaries):
        if any(address in prefix for prefix in eni.prefixes):
            raise MalformedError("an address", str(address), "outside of the ENI's prefixes")
    return replace(eni, subnet_cidr=subnet.cidr)


def unread_interface(body: Object, why: str) -> Unread:
    """Say what of an ENI that cannot be read is known all the same."""
    attachment = body.get("Attachment")
    index = attachment.get("DeviceIndex") if isinstance(attachment, Mapping) else None
    usable = isinstance(index, int) and 0 <= index <= MAX_DEVICE_INDEX
    return Unread("eni", _name(body, "NetworkInterfaceId"), why, index if usable else None)


def unread_subnet(body: Object, why: str) -> Unread:
    """The same of a subnet."""
    return Unread("subnet", _name(body, "SubnetId"), why)


def _name(body: Object, key: str) -> str:
    try:
        return ID.of(body, key)
    except MalformedError:
        return ""


def _moment(value: str) -> float | None:
    """Return an RFC 3339 time in seconds since the epoch; None if it is no such time."""
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


# -- subnets and instance types -----------------------------------------------------------


def decode_subnet(body: Object) -> Subnet:
    """Read a subnet; its blocks are not counted yet.

    Raises:
        MalformedError: something in it is not what it must be.
    """
    ipv6 = _ipv6_block(body)
    families: tuple[str, ...] = ("ipv4", "ipv6") if ipv6 else ("ipv4",)
    cidr: IpNetwork
    if ipv6 is not None and body.get("CidrBlock") in (None, ""):
        cidr, families = ipv6, ("ipv6",)
    else:
        cidr = SUBNET_CIDR.of(body, "CidrBlock")
    return Subnet(
        subnet_id=ID.of(body, "SubnetId"),
        zone=WORD.of(body, "AvailabilityZone"),
        cidr=cidr,
        free=FREE.of(body, "AvailableIpAddressCount"),
        tags=tuple(sorted(_tags(body, "Tags").items())),
        families=families,
        vpc_id=ID.of(body, "VpcId"),
    )


def _ipv6_block(body: Object) -> IPv6Network | None:
    for block in entries(body, "Ipv6CidrBlockAssociationSet", MAX_BLOCKS):
        if inner(block, "Ipv6CidrBlockState").get("State") == "associated":
            return SUBNET_CIDR_IPV6.of(block, "Ipv6CidrBlock")
    return None


def taken_numbers(body: Object) -> tuple[str, set[int]]:
    """Return an ENI's subnet and the numbers of all its addresses, those of prefixes too.

    Raises:
        MalformedError: something in it is not what it must be.
    """
    addresses = IPV4.each(body, "PrivateIpAddresses", "PrivateIpAddress", MAX_ADDRESSES)
    numbers = set(map(int, addresses))
    for prefix in PREFIX.each(body, "Ipv4Prefixes", "Ipv4Prefix", MAX_ADDRESSES):
        numbers.update(map(int, prefix))
    return ID.of(body, "SubnetId"), numbers


def decode_limits(body: Object) -> Limits:
    """Read what an instance type allows on its first network card, the only one that is used.

    Raises:
        MalformedError: something in it is not what it must be.
    """
    network = inner(body, "NetworkInfo")
    cards = entries(network, "NetworkCards", MAX_CARDS)
    first = next((c for c in cards if c.get("NetworkCardIndex", 0) == 0), network)
    return Limits(
        enis=TYPE_ENIS.of(first, "MaximumNetworkInterfaces"),
        addresses_per_eni=TYPE_ADDRESSES.of(network, "Ipv4AddressesPerInterface"),
    )


# -- answers to changes -------------------------------------------------------------------


def decode_assigned(body: Object) -> frozenset[IpNetwork]:
    """Read what AssignPrivateIpAddresses gave: addresses as /32, and prefixes.

    Raises:
        MalformedError: something in it is not what it must be.
    """
    lists = "AssignedPrivateIpAddresses"
    addresses = IPV4.each(body, lists, "PrivateIpAddress", MAX_ADDRESSES)
    prefixes = PREFIX.each(body, "AssignedIpv4Prefixes", "Ipv4Prefix", MAX_ADDRESSES)
    return frozenset(map(host_network, addresses)) | prefixes


def decode_delegated(body: Object) -> frozenset[IpNetwork]:
    """Read what AssignIpv6Addresses gave.

    Raises:
        MalformedError: something in it is not what it must be.
    """
    found = body.get("AssignedIpv6Prefixes")
    if found is None:
        return frozenset()
    if not isinstance(found, list) or len(found) > MAX_ADDRESSES:
        raise MalformedError("AssignedIpv6Prefixes", found, f"a list of at most {MAX_ADDRESSES}")
    return frozenset(PREFIX_IPV6.of({"Ipv6Prefix": p}, "Ipv6Prefix") for p in found)
