"""What EC2 answers of the VPC's peerings, route tables and prefix lists, read with distrust.

Others choose much of it: a peer its CIDR blocks and names, another AWS account a prefix list that
it shares. A part that cannot be read makes the whole answer none. What is left out on purpose is
IPv6, which is never translated.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

from reconciler.egress.source import MAX_LABEL, Entry
from reconciler.targets.ec2.decode import WORD, read_tags
from reconciler.targets.values import MalformedError, Object, entries, inner, like, network, number

VPC_ID = like(r"vpc-[0-9A-Za-z]{1,32}")
PEERING_ID = like(r"pcx-[0-9A-Za-z]{1,32}")
TABLE_ID = like(r"rtb-[0-9A-Za-z]{1,32}")
SUBNET_ID = like(r"subnet-[0-9A-Za-z-]{1,48}")
LIST_ID = like(r"pl-[0-9a-f]{8,17}")
TARGET = like(r"[0-9A-Za-z][0-9A-Za-z:/._-]{0,255}")
"""A route's target: an id, or an ARN."""

TEXT = like(r"(?s).{0,1024}")
VPC_CIDR = network(IPv4Network, range(16, 29))
"""A VPC's IPv4 CIDR block (VPC user guide, "VPC CIDR blocks")."""

CIDR = network(IPv4Network, range(33))
VERSION = number(1, 1 << 53)

MAX_BLOCKS = 64
"""CIDR blocks of one VPC; the quota is 5, and can be raised to 50."""

MAX_ROUTES = 2000
"""Routes of one table; the quota is 500, and can be raised to 1,000 (VPC user guide, "Amazon VPC
quotas")."""

MAX_ASSOCIATIONS = 1000
"""Subnets of one table; the quota of subnets in a VPC is 200, and can be raised."""

TARGETS = (
    *("VpcPeeringConnectionId", "TransitGatewayId", "NatGatewayId", "LocalGatewayId"),
    *("CarrierGatewayId", "EgressOnlyInternetGatewayId", "CoreNetworkArn", "GatewayId"),
    *("NetworkInterfaceId", "InstanceId"),
)
"""Fields of a route, of which one has its target; a route to an instance names its ENI too."""

UNKNOWN_TARGET = "unknown"
"""Of a route whose target is of a kind that this release does not know."""

ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class RawRoute:
    """A route that is active; its destination is a CIDR, or the id of a prefix list."""

    destination: IPv4Network | str
    target: str


@dataclass(frozen=True, slots=True)
class RawTable:
    """A route table; ``subnets``: those that are associated with it by name."""

    name: str
    routes: tuple[RawRoute, ...]
    subnets: frozenset[str]


@dataclass(frozen=True, slots=True)
class ListVersion:
    """A prefix list as it is described; ``version`` is None of one that AWS manages."""

    list_id: str
    name: str
    family: str
    version: int | None


def decode_peering(body: Object, vpc_id: str) -> tuple[Entry, ...]:
    """Read the other side of an active peering of a VPC; one that is not active has none."""
    name = PEERING_ID.of(body, "VpcPeeringConnectionId")
    if WORD.of(inner(body, "Status"), "Code") != ACTIVE:
        return ()
    sides = [inner(body, key) for key in ("RequesterVpcInfo", "AccepterVpcInfo")]
    others = [s for s in sides if VPC_ID.of(s, "VpcId") != vpc_id]
    if len(others) != 1:
        raise MalformedError("VpcId", sides[0].get("VpcId"), f"{vpc_id} on one side")
    blocks = VPC_CIDR.each(others[0], "CidrBlockSet", "CidrBlock", MAX_BLOCKS)
    blocks = blocks or {VPC_CIDR.of(others[0], "CidrBlock")}
    label = _label(read_tags(body, "Tags").get("Name", ""))
    return tuple(Entry(block, name, label) for block in blocks)


def decode_table(body: Object) -> RawTable:
    """Read a route table."""
    associations = entries(body, "Associations", MAX_ASSOCIATIONS)
    return RawTable(
        name=TABLE_ID.of(body, "RouteTableId"),
        routes=tuple(
            route
            for each in entries(body, "Routes", MAX_ROUTES, required=True)
            if (route := _decode_route(each)) is not None
        ),
        subnets=frozenset(SUBNET_ID.of(a, "SubnetId") for a in associations if a.get("SubnetId")),
    )


def _decode_route(body: Object) -> RawRoute | None:
    """Read a route; None if it decides nothing here.

    One to the VPC itself leads to what always sees pods. One that is a black hole leads nowhere. A
    gateway endpoint, the only one with a service's prefix list, takes any address of the VPC.
    """
    if WORD.of(body, "State") != ACTIVE:
        return None
    key = next((k for k in TARGETS if body.get(k)), None)
    target = TARGET.of(body, key) if key else UNKNOWN_TARGET
    if body.get("DestinationCidrBlock"):
        destination: IPv4Network | str = CIDR.of(body, "DestinationCidrBlock")
    elif body.get("DestinationPrefixListId") and not target.startswith("vpce-"):
        destination = LIST_ID.of(body, "DestinationPrefixListId")
    else:
        return None
    return None if target == "local" else RawRoute(destination, target)


def decode_list(body: Object) -> ListVersion:
    """Read what a prefix list is; its entries are a question of their own."""
    version = body.get("Version")
    return ListVersion(
        LIST_ID.of(body, "PrefixListId"),
        _label(TEXT.of(body, "PrefixListName")) if body.get("PrefixListName") else "",
        WORD.of(body, "AddressFamily"),
        None if version is None else VERSION.of(body, "Version"),
    )


def decode_list_entry(body: Object) -> Entry:
    """Read an entry of an IPv4 prefix list."""
    text = body.get("Description")
    return Entry(CIDR.of(body, "Cidr"), "", _label(TEXT.take("Description", text)) if text else "")


def _label(text: str) -> str:
    """Return a name as it can be shown: within a bound, without what would end its quotes."""
    return "".join(c if c.isprintable() and c != '"' else " " for c in text[:MAX_LABEL])
