"""What EC2 answers, read with distrust: every value has its type and its bound, or is not read.

The SDK checks nothing of an answer: a field may be absent, of another type, or of any length,
and a look decides what is given back. So an object whose fields cannot be read is *unread*: it
concerns that object alone, it counts as there, and nothing is given back meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from reconciler.core.datapath import MAX_DEVICE_INDEX, IpNetwork, host_network
from reconciler.core.facts import Eni
from reconciler.ipam.cloud import (
    CREATED_TAG,
    CREATION_TAG,
    INSTANCE_TAG,
    STOCK_INSTANCE_TAG,
    UNMANAGED_TAG,
    Limits,
    Unread,
    is_stock_tag,
)
from reconciler.ipam.pool import PREFIX_SIZE
from reconciler.ipam.release import unit_networks
from reconciler.ipam.subnet import Subnet

Object = Mapping[str, Any]
"""An object of an answer, as the SDK gives it."""

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

MAX_CARD_INDEX = 1 << 16
"""Index of a network card; those that are not used are seen all the same."""

MAX_TYPE_ENIS = 128
"""ENIs on one network card of an instance type: as many as there are marks for."""

MAX_TYPE_ADDRESSES = 256
"""IPv4 addresses that a type allows on one ENI."""

SUBNET_LENGTHS = range(16, 29)
"""Lengths of a subnet's IPv4 CIDR block (VPC user guide, "Subnet sizing")."""

SUBNET_LENGTHS_IPV6 = range(44, 65)
"""The same of IPv6. Source as above."""

PREFIX_LENGTH = 33 - PREFIX_SIZE.bit_length()
"""Length of a delegated IPv4 prefix; any other would be spelt out to more addresses."""

PREFIX_LENGTH_IPV6 = 80
"""The same of IPv6."""

ID = re.compile(r"(eni|eni-attach|subnet|sg|vpc)-[0-9A-Za-z-]{1,48}")
"""An id of EC2's."""

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A zone, a type or a status."""

MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")

TOKEN = re.compile(r"[ -~]{1,8192}")
"""A page's token: EC2 calls it opaque, and it is printable."""

SERVING_TYPES = {"interface", "efa"}
"""Types of ENIs that can carry addresses for pods. Of all others (efa-only, trunk, branch, those
of AWS's own services) none is ever ours, whatever its tags say."""

ANYWHERE = IPv4Network("0.0.0.0/0")
"""In place of a subnet's CIDR block that is not known yet."""

NO_ADDRESS = IPv4Address("0.0.0.0")
"""In place of the primary address of an ENI that has none: of IPv6 alone, or EFA alone."""


class MalformedError(ValueError):
    """A value of an answer is not what it must be."""

    def __init__(self, key: str, value: object, wanted: str) -> None:
        super().__init__(f"{key} is {_shown(value)}, not {wanted}")


@dataclass(frozen=True, slots=True)
class Listed:
    """An ENI of a list, before its subnet is known.

    Attributes:
        eni: with ``ANYWHERE`` in place of its subnet's CIDR block.
        vpc_id: of its VPC.
    """

    eni: Eni
    vpc_id: str


# -- values -------------------------------------------------------------------------------


def _shown(value: object) -> str:
    """Return a value for a message: short, printable, whatever it is."""
    if value is None:
        return "absent"
    if isinstance(value, str):
        return ascii(value[:32]) + (f" and {len(value) - 32} characters" if value[32:] else "")
    if isinstance(value, int) and value.bit_length() <= 64:
        return str(value)
    if isinstance(value, list | Mapping):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def entries(body: Object, key: str, most: int, *, required: bool = False) -> list[Object]:
    """Return a list of objects; one that is absent is empty.

    Raises:
        MalformedError: it is no such list, or longer.
    """
    found = body.get(key)
    if found is None and not required:
        return []
    if not isinstance(found, list) or len(found) > most:
        raise MalformedError(key, found, f"a list of at most {most}")
    for entry in found:
        if not isinstance(entry, Mapping):
            raise MalformedError(f"an entry of {key}", entry, "an object")
    return found


def inner(body: Object, key: str) -> Object:
    """Return an object; one that is absent is empty.

    Raises:
        MalformedError: it is none.
    """
    found = body.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise MalformedError(key, found, "an object")
    return found


def text(body: Object, key: str, pattern: re.Pattern[str] = ID) -> str:
    """Return a text.

    Raises:
        MalformedError: it is absent, none, or does not match.
    """
    found = body.get(key)
    if not isinstance(found, str) or not pattern.fullmatch(found):
        raise MalformedError(key, found, f"a text like {pattern.pattern}")
    return found


def number(body: Object, key: str, least: int, most: int) -> int:
    """Return a whole number.

    Raises:
        MalformedError: it is absent, none, or out of bounds.
    """
    found = body.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise MalformedError(key, found, f"a number from {least} to {most}")
    return found


def flag(body: Object, key: str) -> bool:
    """Return a truth value; one that is absent is false.

    Raises:
        MalformedError: it is none.
    """
    found = body.get(key)
    if found is not None and not isinstance(found, bool):
        raise MalformedError(key, found, "true or false")
    return bool(found)


def _ipv4(body: Object, key: str) -> IPv4Address:
    found = body.get(key)
    try:
        if isinstance(found, str):
            return IPv4Address(found)
    except ValueError:
        pass
    raise MalformedError(key, found, "an IPv4 address")


def _ipv6(body: Object, key: str) -> IPv6Address:
    found = body.get(key)
    try:
        if isinstance(found, str):
            return IPv6Address(found)
    except ValueError:
        pass
    raise MalformedError(key, found, "an IPv6 address")


def _network4(body: Object, key: str, lengths: Iterable[int]) -> IPv4Network:
    found = body.get(key)
    try:
        if isinstance(found, str) and (network := IPv4Network(found)).prefixlen in lengths:
            return network
    except ValueError:
        pass
    raise MalformedError(key, found, "an IPv4 network of the right length")


def _network6(body: Object, key: str, lengths: Iterable[int]) -> IPv6Network:
    found = body.get(key)
    try:
        if isinstance(found, str) and (network := IPv6Network(found)).prefixlen in lengths:
            return network
    except ValueError:
        pass
    raise MalformedError(key, found, "an IPv6 network of the right length")


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
    eni_id = text(body, "NetworkInterfaceId")
    attachment = inner(body, "Attachment")
    here = attachment if attachment.get("InstanceId") == instance_id else {}
    if attached and not here:
        raise MalformedError("Attachment.InstanceId", attachment.get("InstanceId"), instance_id)
    mac = text(body, "MacAddress", MAC).lower()
    is_primary = bool(here) and mac == primary_mac
    tags = _tags(body, "TagSet")
    card = here.get("NetworkCardIndex")
    if card is not None and (card := number(here, "NetworkCardIndex", 0, MAX_CARD_INDEX)):
        if is_primary or tags.get(INSTANCE_TAG) == instance_id:
            raise MalformedError("NetworkCardIndex", card, "0, of the only card that is used")
        return None
    index = number(here, "DeviceIndex", 0, MAX_DEVICE_INDEX) if here else None
    primary = _ipv4(body, "PrivateIpAddress") if body.get("PrivateIpAddress") else NO_ADDRESS
    if is_primary and primary == NO_ADDRESS:
        raise MalformedError("PrivateIpAddress", None, "an IPv4 address, which a node needs")
    kind = body.get("InterfaceType")
    usable = (
        (kind is None or text(body, "InterfaceType", WORD) in SERVING_TYPES)
        and tags.get(UNMANAGED_TAG) != "true"
        and primary != NO_ADDRESS
        and (index is None or index > 0)
    )
    eni = Eni(
        eni_id=eni_id,
        mac=mac,
        device_index=index,
        status=text(here or body, "Status", WORD),
        subnet_id=text(body, "SubnetId"),
        subnet_cidr=ANYWHERE,
        primary=primary,
        secondaries=_secondaries(body, primary),
        security_groups=tuple(
            sorted(text(g, "GroupId") for g in entries(body, "Groups", MAX_GROUPS))
        ),
        attachment_id=text(here, "AttachmentId") if here else None,
        delete_on_termination=flag(attachment, "DeleteOnTermination"),
        # The primary is part of the instance; nobody else can own it.
        owned=is_primary or (usable and tags.get(INSTANCE_TAG) == instance_id),
        prefixes=tuple(
            sorted(
                {
                    _network4(p, "Ipv4Prefix", [PREFIX_LENGTH])
                    for p in entries(body, "Ipv4Prefixes", MAX_ADDRESSES)
                }
            )
        ),
        creation=tags.get(CREATION_TAG, ""),
        created_at=_moment(tags.get(CREATED_TAG, "")),
        stock=usable and tags.get(STOCK_INSTANCE_TAG) == instance_id,
        stock_tags=tuple(sorted(filter(is_stock_tag, tags))),
        ipv6_prefixes=tuple(
            sorted(
                {
                    _network6(p, "Ipv6Prefix", [PREFIX_LENGTH_IPV6])
                    for p in entries(body, "Ipv6Prefixes", MAX_ADDRESSES)
                }
            )
        ),
        host_addresses=tuple(
            _ipv6(a, "Ipv6Address") for a in entries(body, "Ipv6Addresses", MAX_ADDRESSES)
        ),
        is_primary=is_primary,
    )
    return Listed(eni, text(body, "VpcId"))


def _secondaries(body: Object, primary: IPv4Address) -> tuple[IPv4Address, ...]:
    """Return single addresses for pods; the primary one is the host's, whatever its flag says."""
    found = set()
    for entry in entries(body, "PrivateIpAddresses", MAX_ADDRESSES):
        address = _ipv4(entry, "PrivateIpAddress")
        if flag(entry, "Primary") and address != primary:
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
    found = body.get(key)
    return found if isinstance(found, str) and ID.fullmatch(found) else ""


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
        cidr = _network4(body, "CidrBlock", SUBNET_LENGTHS)
    return Subnet(
        subnet_id=text(body, "SubnetId"),
        zone=text(body, "AvailabilityZone", WORD),
        cidr=cidr,
        free=number(body, "AvailableIpAddressCount", 0, 1 << 16),
        tags=tuple(sorted(_tags(body, "Tags").items())),
        families=families,
        vpc_id=text(body, "VpcId"),
    )


def _ipv6_block(body: Object) -> IPv6Network | None:
    for block in entries(body, "Ipv6CidrBlockAssociationSet", MAX_BLOCKS):
        if inner(block, "Ipv6CidrBlockState").get("State") == "associated":
            return _network6(block, "Ipv6CidrBlock", SUBNET_LENGTHS_IPV6)
    return None


def taken_numbers(body: Object) -> tuple[str, set[int]]:
    """Return an ENI's subnet and the numbers of all its addresses, those of prefixes too.

    Raises:
        MalformedError: something in it is not what it must be.
    """
    numbers = {
        int(_ipv4(a, "PrivateIpAddress"))
        for a in entries(body, "PrivateIpAddresses", MAX_ADDRESSES)
    }
    for prefix in entries(body, "Ipv4Prefixes", MAX_ADDRESSES):
        numbers.update(map(int, _network4(prefix, "Ipv4Prefix", [PREFIX_LENGTH])))
    return text(body, "SubnetId"), numbers


def decode_limits(body: Object) -> Limits:
    """Read what an instance type allows on its first network card, the only one that is used.

    Raises:
        MalformedError: something in it is not what it must be.
    """
    network = inner(body, "NetworkInfo")
    cards = entries(network, "NetworkCards", MAX_CARDS)
    first = next((c for c in cards if c.get("NetworkCardIndex", 0) == 0), network)
    return Limits(
        enis=number(first, "MaximumNetworkInterfaces", 1, MAX_TYPE_ENIS),
        addresses_per_eni=number(network, "Ipv4AddressesPerInterface", 1, MAX_TYPE_ADDRESSES),
    )


# -- answers to changes -------------------------------------------------------------------


def decode_assigned(body: Object) -> frozenset[IpNetwork]:
    """Read what AssignPrivateIpAddresses gave: addresses as /32, and prefixes.

    Raises:
        MalformedError: something in it is not what it must be.
    """
    addresses = entries(body, "AssignedPrivateIpAddresses", MAX_ADDRESSES)
    prefixes = entries(body, "AssignedIpv4Prefixes", MAX_ADDRESSES)
    given: set[IpNetwork] = {host_network(_ipv4(a, "PrivateIpAddress")) for a in addresses}
    return frozenset(given | {_network4(p, "Ipv4Prefix", [PREFIX_LENGTH]) for p in prefixes})


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
    key = "Ipv6Prefix"
    return frozenset(_network6({key: p}, key, [PREFIX_LENGTH_IPV6]) for p in found)
