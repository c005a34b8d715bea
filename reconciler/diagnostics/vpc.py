"""The way of a connection through the VPC, where the node ends. Pure.

Security groups are stateful: what they let out or in is answered. Network ACLs are not, so the
answer passes both of them again, to a port that the client's kernel has chosen. Only IPv4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

ANY = -1
"""Of a protocol: all of them (EC2 API reference, IpPermission and NetworkAclEntry)."""

NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
"""Protocols that EC2 spells."""

PORTS = (32768, 60999)
"""Ports that a Linux client chooses from (net.ipv4.ip_local_port_range)."""

Ports = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection as the VPC sees its first packet; ``port`` is None if it is not named."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    port: int | None


@dataclass(frozen=True, slots=True)
class Permit:
    """What a security group lets pass; ``ports`` is None for all.

    ``groups``, ``lists``: the other end is in one of these groups, or prefix lists.
    """

    protocol: int
    ports: Ports | None
    networks: tuple[IPv4Network, ...] = ()
    groups: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SecurityGroup:
    """What a security group lets in and out."""

    group_id: str
    ingress: tuple[Permit, ...]
    egress: tuple[Permit, ...]


@dataclass(frozen=True, slots=True)
class AclEntry:
    """A rule of a network ACL; the smallest number that matches decides."""

    number: int
    is_egress: bool
    allows: bool
    protocol: int
    network: IPv4Network
    ports: Ports | None


@dataclass(frozen=True, slots=True)
class Acl:
    """A network ACL; what no entry matches is dropped."""

    acl_id: str
    entries: tuple[AclEntry, ...]


@dataclass(frozen=True, slots=True)
class VpcRoute:
    """A route of a subnet's table; its destination may be the id of a prefix list."""

    destination: IPv4Network | str
    target: str
    is_active: bool


@dataclass(frozen=True, slots=True)
class VpcTable:
    """The route table of a subnet."""

    table_id: str
    routes: tuple[VpcRoute, ...]


@dataclass(frozen=True, slots=True)
class Peering:
    """A peering, with the VPCs that it joins and their CIDRs."""

    peering_id: str
    status: str
    vpcs: tuple[str, ...]
    cidrs: tuple[IPv4Network, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """An ENI, and what its VPC asks of its packets; None is what could not be read.

    ``public``: its addresses that have a public one.
    """

    eni_id: str
    subnet_id: str
    vpc_id: str
    groups: tuple[SecurityGroup, ...] | None
    acl: Acl | None
    table: VpcTable | None
    public: frozenset[IPv4Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Way:
    """What was read of both ends: ours, and the peer's if we may describe it.

    ``unread``: what could not be read, and why.
    """

    ours: Side
    peer: Side | None
    peerings: tuple[Peering, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VpcStep:
    """One question that the VPC asks. ``stops``: the connection ends here; None is not known."""

    about: str
    text: str
    stops: bool | None = False


LINK_LOCAL = IPv4Network("169.254.0.0/16")

RESOLVER = 2
"""Place of Amazon's resolver in a VPC's CIDR (VPC user guide, "Amazon DNS server")."""


def answered_by(address: IPv4Address, cidrs: Iterable[IPv4Network]) -> str:
    """Say that the VPC itself answers at an address, so that nothing of it is asked; "" if not.

    Neither security groups nor network ACLs filter what goes to Amazon's resolver, instance
    metadata and the Time Sync Service (VPC user guide), and no route table routes it.
    """
    what = ""
    if address in LINK_LOCAL:
        what = "a link-local address of the host, where AWS answers (metadata, resolver, time)"
    elif any(address == cidr.network_address + RESOLVER for cidr in cidrs):
        what = "Amazon's resolver in this VPC"
    rest = "no security group, network ACL or route table is asked"
    return f"{address} is {what}: {rest}" if what else ""


def follow(flow: Flow, way: Way, *, inbound: bool = False) -> list[VpcStep]:
    """Follow a connection's first packet and its answer; ``inbound``: the peer opens it."""
    first, second = (way.peer, way.ours) if inbound else (way.ours, way.peer)
    steps = [*_leaves(flow, first, second, way), *_arrives(flow, first, second)]
    steps += _answers(flow, first, second, way)
    if way.peer is None:
        other = flow.source if inbound else flow.destination
        ours = flow.destination if inbound else flow.source
        steps.append(
            VpcStep(
                "peer",
                f"no ENI with {other} can be described from here, so its security groups, network "
                f"ACL and route back to {ours} must be looked at where it is",
                None,
            )
        )
    return steps


def _leaves(flow: Flow, first: Side | None, second: Side | None, way: Way) -> Iterator[VpcStep]:
    if first is None:
        return
    yield _groups("out", flow, first, flow.destination, second)
    yield _acl("it out", first, flow.protocol, flow.destination, flow.port)
    yield _route(first, flow.source, flow.destination, way)


def _arrives(flow: Flow, first: Side | None, second: Side | None) -> Iterator[VpcStep]:
    if second is None:
        return
    yield _acl("it in", second, flow.protocol, flow.source, flow.port)
    yield _groups("in", flow, second, flow.source, first)


def _answers(flow: Flow, first: Side | None, second: Side | None, way: Way) -> Iterator[VpcStep]:
    if second is not None:
        yield _acl("the answer out", second, flow.protocol, flow.source, PORTS)
        step = _route(second, flow.destination, flow.source, way)
        yield VpcStep(f"answer {step.about}", step.text, step.stops)
    if first is not None:
        yield _acl("the answer in", first, flow.protocol, flow.destination, PORTS)


# -- security groups ------------------------------------------------------------------------


def _groups(way: str, flow: Flow, side: Side, other: IPv4Address, far: Side | None) -> VpcStep:
    about = "security groups"
    if side.groups is None:
        return VpcStep(about, f"those of {side.eni_id} are not known", None)
    named = ", ".join(g.group_id for g in side.groups)
    maybe = ""
    known = {g.group_id for g in far.groups} if far is not None and far.groups else None
    for group in side.groups:
        for permit in group.egress if way == "out" else group.ingress:
            matched = _permits(permit, flow, other, known)
            if matched is True:
                return VpcStep(
                    about, f"{group.group_id} of {side.eni_id} lets it {way} {_on(permit)}"
                )
            maybe = maybe or (matched or "")
    if maybe:
        return VpcStep(about, f"{named} of {side.eni_id} may let it {way}: {maybe}", None)
    what = f"{_spell(flow)} {'to' if way == 'out' else 'from'} {other}"
    text = f"none of {named} of {side.eni_id} lets {what} {way}"
    return VpcStep(about, text, True)


def _on(permit: Permit) -> str:
    return "(all)" if permit.protocol == ANY else f"(ports {_ports(permit.ports)})"


def _permits(permit: Permit, flow: Flow, other: IPv4Address, known: set[str] | None) -> bool | str:
    """Whether a permit lets a packet pass; a text says on what it depends; False is no."""
    if permit.protocol not in (ANY, flow.protocol):
        return False
    where: bool | str = any(other in n for n in permit.networks)
    if not where and permit.groups:
        if known is None:
            where = f"if {other} is in {' or '.join(permit.groups)}"
        else:
            where = bool(known.intersection(permit.groups))
    if not where and permit.lists:
        where = f"if {' or '.join(permit.lists)} has {other}"
    if where is False or permit.ports is None or permit.protocol == ANY:
        return where
    if flow.port is None:
        return f"for ports {_ports(permit.ports)}; name one by --port"
    return where if permit.ports[0] <= flow.port <= permit.ports[1] else False


def _ports(ports: Ports | None) -> str:
    if ports is None:
        return "all"
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


def _spell(flow: Flow) -> str:
    name = {number: name for name, number in NUMBERS.items()}.get(flow.protocol, "packets")
    return f"{name} port {flow.port}" if flow.port is not None else name


# -- network ACLs ---------------------------------------------------------------------------


def _acl(
    way: str, side: Side, protocol: int, other: IPv4Address, ports: Ports | int | None
) -> VpcStep:
    about = "network ACL"
    if side.acl is None:
        return VpcStep(about, f"that of {side.subnet_id} is not known", None)
    wanted = (ports, ports) if isinstance(ports, int) else ports
    name = f"{side.acl.acl_id} of {side.subnet_id}"
    is_egress = way.endswith("out")
    for entry in sorted(side.acl.entries, key=lambda e: e.number):
        if entry.is_egress is not is_egress or other not in entry.network:
            continue
        if entry.protocol not in (ANY, protocol):
            continue
        covers = _covers(None if entry.protocol == ANY else entry.ports, wanted)
        if covers is False:
            continue
        verb = "lets" if entry.allows else "does not let"
        text = f"{name}, rule {entry.number}, {verb} {way}"
        if covers is None:
            text += f" for ports {_ports(entry.ports)} of {_ports(wanted)}"
            return VpcStep(about, text, None)
        return VpcStep(about, text, not entry.allows)
    return VpcStep(about, f"{name} has no rule that lets {way}", True)


def _covers(ports: Ports | None, wanted: Ports | None) -> bool | None:
    """Whether a rule's ports have all that are meant, or none (False); None for some."""
    if ports is None:
        return True
    if wanted is None:
        return None
    if ports[0] <= wanted[0] and wanted[1] <= ports[1]:
        return True
    return False if ports[1] < wanted[0] or wanted[1] < ports[0] else None


# -- routes ---------------------------------------------------------------------------------


def _route(side: Side, source: IPv4Address, destination: IPv4Address, way: Way) -> VpcStep:
    about, table = "route", side.table
    if table is None:
        return VpcStep(about, f"the route table of {side.subnet_id} is not known", None)
    lists = sorted(r.destination for r in table.routes if isinstance(r.destination, str))
    found = _longest(table.routes, destination)
    name = f"{table.table_id} of {side.subnet_id}"
    unless = f", unless {' or '.join(lists)} has it" if lists else ""
    if found is None:
        text = f"{name} has no route to {destination}: the VPC drops it{unless}"
        return VpcStep(about, text, None if lists else True)
    text = f"{name} sends {found.destination} to {found.target}"
    if not found.is_active:
        return VpcStep(about, f"{text}, which is a black hole: its target is gone", True)
    more, stops = _target(found.target, side, source, destination, way)
    return VpcStep(about, f"{text}{more}{unless}", None if lists and not stops else stops)


def _longest(routes: Iterable[VpcRoute], destination: IPv4Address) -> VpcRoute | None:
    fitting = [
        r
        for r in routes
        if isinstance(r.destination, IPv4Network) and destination in r.destination
    ]
    return max(fitting, key=lambda r: r.destination.prefixlen, default=None)  # type: ignore[union-attr]


def _target(
    target: str, side: Side, source: IPv4Address, destination: IPv4Address, way: Way
) -> tuple[str, bool | None]:
    """Say what a route's target does with a packet, and whether it ends there."""
    match target.partition("-")[0]:
        case "local":
            return "", False
        case "pcx":
            return _peering(target, destination, way)
        case "igw" if source in side.public:
            return f", which gives {source} its public address", False
        case "igw":
            why = (
                "give it an Elastic IP, exclude less from SNAT if it is a pod's own, or route to "
                "a NAT gateway"
            )
            return f", and {source} has no public address: {why}", True
        case "nat":
            return f", which gives {source} its own address", False
        case _:
            return "; what is behind it is not followed", None


def _peering(target: str, destination: IPv4Address, way: Way) -> tuple[str, bool | None]:
    found = next((p for p in way.peerings if p.peering_id == target), None)
    if found is None:
        return ", which cannot be described", None
    if found.status != "active":
        return f", which is {found.status} and not active", True
    if not any(destination in c for c in found.cidrs):
        cidrs = ", ".join(map(str, found.cidrs))
        return f", whose VPCs have {cidrs} and not {destination}: a peering leads no further", True
    return ", an active peering", False
