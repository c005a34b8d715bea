"""What EC2 answers, read with distrust, as values.

Each reader raises a ``MalformedError`` if something is not what it must be. A look decides what is
given back. So an object whose fields cannot be read is *unread*: it concerns that object alone, it
counts as there, and nothing is given back meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from reconciler.core.datapath import MAX_DEVICE_INDEX, IpNetwork, host_network
from reconciler.core.facts import Eni
from reconciler.ipam import cloud
from reconciler.ipam.cloud import Limits, OtherCard, Reserved, Subnet, Unread
from reconciler.ipam.ec2_action import IDLE_TIMEOUTS
from reconciler.ipam.release import unit_networks
from reconciler.targets.values import (
    FLAG,
    IPV4,
    IPV6,
    MalformedError,
    Object,
    entries,
    inner,
    like,
    network,
    number,
)

# -- types of fields; the SDK checks nothing of them ----------------------------------------

ID = like(r"(eni|eni-attach|subnet|sg|vpc)-[0-9A-Za-z-]{1,48}")
WORD = like(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A zone, a type or a status."""

MAC = like(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
PREFIX = network(IPv4Network, [33 - cloud.PREFIX_SIZE.bit_length()])
"""A delegated IPv4 prefix; one of another length would be spelt out to more addresses."""

PREFIX_IPV6 = network(IPv6Network, [80])
SUBNET_CIDR = network(IPv4Network, range(16, 29))
"""A subnet's IPv4 CIDR block (VPC user guide, "Subnet sizing")."""

RESERVED_CIDR = network(IPv4Network, range(16, 33))
"""A CIDR reservation inside a subnet: any part of it."""

RESERVATION_TYPE = like("prefix|explicit")
"""What a reservation is for (EC2 API reference, CreateSubnetCidrReservation)."""

SUBNET_CIDR_IPV6 = network(IPv6Network, range(44, 65))
"""The same of IPv6. Source as above."""

DEVICE_INDEX = number(0, MAX_DEVICE_INDEX)
CARD_INDEX = number(0, 1 << 16)
"""Index of a network card; those that are not used are seen all the same."""

FREE = number(0, 1 << 16)
"""Free addresses of a subnet."""

TYPE_ENIS = number(1, 128)
"""ENIs on one network card of an instance type: as many as there are marks for."""

TYPE_ADDRESSES = number(1, 256)
"""IPv4 addresses that a type allows on one ENI."""

MAX_ADDRESSES = 128
"""Addresses, or prefixes, of one ENI; the largest instance types allow 64 (EC2 user guide,
"Maximum IP addresses per network interface")."""

MAX_TAGS = 100
"""Tags of one object; EC2 allows 50, those of AWS's own services not counted."""

MAX_TAG_TEXT = 256
"""Characters of a tag's key or value (EC2 user guide, "Tag restrictions": 128 and 256)."""

MAX_GROUPS = 64
"""Security groups of one ENI; the quota can be raised to 16."""

IDLE_TIMEOUT_S = number(0, 432_000)
"""Of a connection that EC2 tracks (EC2 user guide, "Connection tracking timeouts": five days)."""

MAX_CARDS = 64
"""Network cards of one instance type; the largest have 32."""

MAX_BLOCKS = 64
"""IPv6 CIDR blocks of one subnet; EC2 allows one that is associated, and lists earlier ones."""

SERVING_TYPES = {"interface", "efa"}
"""Types of ENIs that can carry addresses for pods. Of all others (efa-only, trunk, branch, those
of AWS's own services) none is ours, whatever its tags say. Metadata tells no types: with
``ec2.mode: frozen`` every ENI that it shows is ours. A type that is to be created belongs in here
too: ``changes`` takes what it creates for ours."""

ANYWHERE = IPv4Network("0.0.0.0/0")
"""In place of a subnet's CIDR block that is not known yet."""

NO_ADDRESS = IPv4Address("0.0.0.0")
"""In place of the primary address of an ENI that has none: of IPv6 alone, or EFA alone."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An ENI with ``ANYWHERE`` in place of its subnet's CIDR block, which is not known yet."""

    eni: Eni
    vpc_id: str


TAG_TEXT = like(rf"(?s).{{0,{MAX_TAG_TEXT}}}")


def read_tags(body: Object, key: str) -> dict[str, str]:
    """Read the tags of an object."""
    found = {}
    for entry in entries(body, key, MAX_TAGS):
        texts = (TAG_TEXT.of(entry, part) for part in ("Key", "Value"))
        # A lone surrogate can be in JSON, and in no file or log.
        name, value = (text.encode(errors="replace").decode() for text in texts)
        found[name] = value
    return found


# -- ENIs ---------------------------------------------------------------------------------


def decode_interface(
    body: Object, instance_id: str, primary_mac: str = "", *, attached: bool = False
) -> Listed | OtherCard:
    """Read an ENI; of one on another network card only what is shown of it.

    Args:
        body: as DescribeNetworkInterfaces has it.
        instance_id: whose ENIs are looked at.
        attached: it is one of those that were asked for as attached to this instance.
        primary_mac: of the primary ENI, by instance metadata. Its place alone does not tell: on
            each further network card there may be one with device index 0 (EC2 user guide,
            "Elastic Fabric Adapter").
    """
    eni_id = ID.of(body, "NetworkInterfaceId")
    attachment = inner(body, "Attachment")
    here = attachment if attachment.get("InstanceId") == instance_id else {}
    if attached and not here:
        raise MalformedError("Attachment.InstanceId", attachment.get("InstanceId"), instance_id)
    mac = MAC.of(body, "MacAddress").lower()
    is_primary = bool(here) and mac == primary_mac
    tags = read_tags(body, "TagSet")
    card = here.get("NetworkCardIndex")
    if card is not None and (card := CARD_INDEX.of(here, "NetworkCardIndex")):
        if is_primary or tags.get(cloud.INSTANCE_TAG) == instance_id:
            raise MalformedError("NetworkCardIndex", card, "0, of the only card that is used")
        return OtherCard(eni_id, card, *_shown_of(body, here))
    index = DEVICE_INDEX.of(here, "DeviceIndex") if here else None
    primary = IPV4.of(body, "PrivateIpAddress") if body.get("PrivateIpAddress") else NO_ADDRESS
    if is_primary and primary == NO_ADDRESS:
        raise MalformedError("PrivateIpAddress", None, "an IPv4 address, which a node needs")
    kind = body.get("InterfaceType")
    usable = (
        (kind is None or WORD.of(body, "InterfaceType") in SERVING_TYPES)
        and tags.get(cloud.UNMANAGED_TAG) != "true"
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
        owned=is_primary or (usable and tags.get(cloud.INSTANCE_TAG) == instance_id),
        prefixes=tuple(sorted(PREFIX.each(body, "Ipv4Prefixes", "Ipv4Prefix", MAX_ADDRESSES))),
        creation=tags.get(cloud.CREATION_TAG, ""),
        created_at=_moment(tags.get(cloud.CREATED_TAG, "")),
        stock=usable and tags.get(cloud.STOCK_INSTANCE_TAG) == instance_id,
        group="" if is_primary else tags.get(cloud.GROUP_TAG, ""),
        stock_tags=tuple(sorted(filter(cloud.is_stock_tag, tags))),
        ipv6_prefixes=tuple(
            sorted(PREFIX_IPV6.each(body, "Ipv6Prefixes", "Ipv6Prefix", MAX_ADDRESSES))
        ),
        host_addresses=tuple(
            IPV6.of(a, "Ipv6Address") for a in entries(body, "Ipv6Addresses", MAX_ADDRESSES)
        ),
        is_primary=is_primary,
        idle_timeouts=_idle_timeouts(body),
    )
    return Listed(eni, ID.of(body, "VpcId"))


def _shown_of(body: Object, attachment: Object) -> tuple[int | None, str]:
    """Return index and type of an ENI that nothing depends on: what cannot be read is left out."""
    index, kind = None, ""
    with suppress(MalformedError):
        index = DEVICE_INDEX.of(attachment, "DeviceIndex")
    with suppress(MalformedError):
        kind = WORD.of(body, "InterfaceType")
    return index, kind


def _idle_timeouts(body: Object) -> tuple[int, int, int]:
    """Return the timeouts that were set; 0 in place of one that was not."""
    found = inner(body, "ConnectionTrackingConfiguration")
    tcp, stream, udp = (IDLE_TIMEOUT_S.of(found, k) if k in found else 0 for k in IDLE_TIMEOUTS)
    return tcp, stream, udp


def _secondaries(body: Object, primary: IPv4Address) -> tuple[IPv4Address, ...]:
    """Return single addresses for pods; the primary one is the host's, whatever its flag says."""
    found = set()
    for entry in entries(body, "PrivateIpAddresses", MAX_ADDRESSES):
        address = IPV4.of(entry, "PrivateIpAddress")
        if FLAG.of(entry, "Primary") and address != primary:
            raise MalformedError("PrivateIpAddress", str(primary), f"{address}, marked primary")
        found.add(address)
    return tuple(sorted(found - {primary}))


def place(eni: Eni, subnets: Mapping[str, Subnet]) -> Eni:
    """Put an ENI into its subnet; eventual consistency can show an ENI before that.

    Raises:
        MalformedError: it is not known, or the ENI holds what is not of it, or the same twice.
    """
    subnet = subnets.get(eni.subnet_id)
    if subnet is None:
        raise MalformedError(f"its subnet {eni.subnet_id}", None, "among the subnets")
    held = [n for n in unit_networks(eni) if isinstance(n, IPv4Network)]
    held += [IPv4Network(eni.primary)] if eni.primary != NO_ADDRESS else []
    for unit in held:
        inside = isinstance(subnet.cidr, IPv4Network) and unit.subnet_of(subnet.cidr)
        if not inside:
            raise MalformedError("an address", str(unit), f"one of its subnet, {subnet.cidr}")
    for address in (eni.primary, *eni.secondaries):
        if any(address in prefix for prefix in eni.prefixes):
            raise MalformedError("an address", str(address), "outside of the ENI's prefixes")
    return replace(eni, subnet_cidr=subnet.cidr)


def unread(kind: str, body: Object, why: str) -> Unread:
    """Say what of an ENI or a subnet that cannot be read is known all the same."""
    try:
        name = ID.of(body, "SubnetId" if kind == "subnet" else "NetworkInterfaceId")
    except MalformedError:
        name = ""
    attachment = body.get("Attachment")
    index = attachment.get("DeviceIndex") if isinstance(attachment, Mapping) else None
    usable = kind == "eni" and isinstance(index, int) and 0 <= index <= MAX_DEVICE_INDEX
    return Unread(kind, name, why, index if usable else None)


def _moment(value: str) -> float | None:
    """Return an RFC 3339 time in seconds since the epoch; None if it is no such time."""
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


# -- subnets and instance types -----------------------------------------------------------


def decode_subnet(body: Object) -> Subnet:
    """Read a subnet; its blocks are not counted yet."""
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
        tags=tuple(sorted(read_tags(body, "Tags").items())),
        families=families,
        vpc_id=ID.of(body, "VpcId"),
    )


def _ipv6_block(body: Object) -> IPv6Network | None:
    for block in entries(body, "Ipv6CidrBlockAssociationSet", MAX_BLOCKS):
        if inner(block, "Ipv6CidrBlockState").get("State") == "associated":
            return SUBNET_CIDR_IPV6.of(block, "Ipv6CidrBlock")
    return None


def decode_reservations(bodies: Iterable[Object]) -> Reserved:
    """Read the IPv4 CIDR reservations of a subnet."""
    read = [
        (RESERVATION_TYPE.of(body, "ReservationType"), RESERVED_CIDR.of(body, "Cidr"))
        for body in bodies
    ]
    return Reserved(
        prefixes=tuple(cidr for kind, cidr in read if kind == "prefix"),
        explicit=tuple(cidr for kind, cidr in read if kind == "explicit"),
    )


def taken_numbers(body: Object) -> tuple[str, set[int]]:
    """Return an ENI's subnet and the numbers of all its addresses, those of prefixes too."""
    addresses = IPV4.each(body, "PrivateIpAddresses", "PrivateIpAddress", MAX_ADDRESSES)
    numbers = set(map(int, addresses))
    for prefix in PREFIX.each(body, "Ipv4Prefixes", "Ipv4Prefix", MAX_ADDRESSES):
        numbers.update(map(int, prefix))
    return ID.of(body, "SubnetId"), numbers


def decode_limits(body: Object) -> Limits:
    """Read what an instance type allows on its first network card, the only one that is used."""
    network = inner(body, "NetworkInfo")
    cards = entries(network, "NetworkCards", MAX_CARDS)
    first = next((c for c in cards if c.get("NetworkCardIndex", 0) == 0), network)
    return Limits(
        enis=TYPE_ENIS.of(first, "MaximumNetworkInterfaces"),
        addresses_per_eni=TYPE_ADDRESSES.of(network, "Ipv4AddressesPerInterface"),
    )


# -- answers to changes -------------------------------------------------------------------


def decode_assigned(body: Object) -> frozenset[IpNetwork]:
    """Read what an ENI was given: addresses as /32, and prefixes."""
    lists = "AssignedPrivateIpAddresses"
    addresses = IPV4.each(body, lists, "PrivateIpAddress", MAX_ADDRESSES)
    prefixes = PREFIX.each(body, "AssignedIpv4Prefixes", "Ipv4Prefix", MAX_ADDRESSES)
    texts = body.get("AssignedIpv6Prefixes")
    texts = [] if texts is None else texts
    if not isinstance(texts, list) or len(texts) > MAX_ADDRESSES:
        raise MalformedError("AssignedIpv6Prefixes", texts, f"a list of at most {MAX_ADDRESSES}")
    ipv6 = {PREFIX_IPV6.take("AssignedIpv6Prefixes", text) for text in texts}
    return frozenset({*map(host_network, addresses), *prefixes, *ipv6})
