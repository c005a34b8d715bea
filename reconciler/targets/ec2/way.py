"""Reads what the VPC asks of a connection: both ENIs, their groups, ACLs, routes, and peerings.

Each question fails alone, and is of few objects: those that the two ends name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

from reconciler.diagnostics.vpc import (
    ANY,
    NUMBERS,
    Acl,
    AclEntry,
    Peering,
    Permit,
    Ports,
    SecurityGroup,
    Side,
    VpcRoute,
    VpcTable,
    Way,
)
from reconciler.ipam import budget
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import Calls, Filters, matching, operation, reading
from reconciler.targets.ec2.decode import ID, WORD
from reconciler.targets.ec2.decode_vpc import (
    ACTIVE,
    CIDR,
    LIST_ID,
    MAX_BLOCKS,
    MAX_ROUTES,
    PEERING_ID,
    SUBNET_ID,
    TABLE_ID,
    TARGET,
    TARGETS,
    UNKNOWN_TARGET,
    VPC_ID,
)
from reconciler.targets.values import IPV4, Object, entries, inner, like, number

INTERFACES = "describe_network_interfaces"
GROUPS = "describe_security_groups"
ACLS = "describe_network_acls"
TABLES = "describe_route_tables"
PEERINGS = "describe_vpc_peering_connections"

FEW = 100  # objects of one answer: what two ENIs name
MOST_PERMITS = 1000
"""Of a security group; the quota is 60 a direction, and can be raised to 1,000 in all groups."""

MOST_ENTRIES = 80
"""Of a network ACL: 40 for each direction at most (VPC user guide, "Amazon VPC quotas")."""

MOST_ADDRESSES = 128  # of an ENI
ACL_ID = like(r"acl-[0-9A-Za-z]{1,32}")
PORT = number(-1, 65535)
RULE = number(1, 32767)
PROTOCOL = number(-1, 255)
MOST_PEERINGS = 4  # that the two route tables name for the two addresses

T = TypeVar("T")


class Ways:
    """Reads ways, within the node's budget of calls."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._unread: list[str] = []

    def look(self, eni_id: str, peer: IPv4Address) -> Way:
        """Read our ENI's side, and that of the ENI that has the peer's address.

        Raises:
            Ec2CallError: our own ENI cannot be described.
        """
        self._unread = []
        with reading(INTERFACES):
            answer = self._calls(INTERFACES, NetworkInterfaceIds=[eni_id])
            ours = self._side(entries(answer, "NetworkInterfaces", FEW, required=True)[0])
        named = {r.target for r in (ours.table.routes if ours.table else ())}
        peerings = tuple(
            self._or_none(PEERINGS, lambda: list(self._peerings(sorted(named)))) or ()
        )
        vpcs = {ours.vpc_id, *(v for p in peerings for v in p.vpcs)}
        far = self._or_none(INTERFACES, lambda: self._peer(peer, sorted(vpcs)))
        return Way(ours, far, peerings, tuple(self._unread))

    def _or_none(self, method: str, read: Callable[[], T]) -> T | None:
        """Return what is read, or note why it is not."""
        try:
            with reading(method):
                return read()
        except Ec2CallError as error:
            is_denied = budget.classify(error.code) is budget.Failure.DENIED
            cure = "; deploy/iam-policy-diagnose.json allows it" if is_denied else ""
            why = f"{operation(method)}: {error.code}: {error.message}{cure}"
            if why not in self._unread:
                self._unread.append(why)
            return None

    def _peerings(self, targets: list[str]) -> Iterator[Peering]:
        if ids := [t for t in targets if t.startswith("pcx-")][:MOST_PEERINGS]:
            wanted: Filters = [matching("vpc-peering-connection-id", *ids)]
            answer = self._calls(PEERINGS, Filters=wanted)
            for body in entries(answer, "VpcPeeringConnections", FEW, required=True):
                yield decode_peering(body)

    def _peer(self, peer: IPv4Address, vpcs: list[str]) -> Side | None:
        wanted: Filters = [
            matching("addresses.private-ip-address", str(peer)),
            matching("vpc-id", *vpcs),
        ]
        answer = self._calls(INTERFACES, Filters=wanted, MaxResults=FEW)
        found = entries(answer, "NetworkInterfaces", FEW, required=True)
        return self._side(found[0]) if found else None

    def _side(self, body: Object) -> Side:
        subnet_id, vpc_id = SUBNET_ID.of(body, "SubnetId"), VPC_ID.of(body, "VpcId")
        group_ids = sorted(ID.each(body, "Groups", "GroupId", FEW))
        return Side(
            ID.of(body, "NetworkInterfaceId"),
            subnet_id,
            vpc_id,
            self._or_none(GROUPS, lambda: self._groups(group_ids)),
            self._or_none(ACLS, lambda: self._acl(subnet_id)),
            self._or_none(TABLES, lambda: self._table(subnet_id, vpc_id)),
            frozenset(_public(body)),
        )

    def _groups(self, ids: list[str]) -> tuple[SecurityGroup, ...]:
        answer = self._calls(GROUPS, GroupIds=ids)
        found = entries(answer, "SecurityGroups", FEW, required=True)
        return tuple(map(decode_group, found))

    def _acl(self, subnet_id: str) -> Acl | None:
        answer = self._calls(ACLS, Filters=[matching("association.subnet-id", subnet_id)])
        found = entries(answer, "NetworkAcls", FEW, required=True)
        return decode_acl(found[0]) if found else None

    def _table(self, subnet_id: str, vpc_id: str) -> VpcTable | None:
        """Return the subnet's own table, or else the VPC's main one."""
        own = [matching("association.subnet-id", subnet_id)]
        main = [matching("vpc-id", vpc_id), matching("association.main", "true")]
        for filters in (own, main):
            answer = self._calls(TABLES, Filters=filters)
            for body in entries(answer, "RouteTables", FEW, required=True):
                return decode_table(body)
        return None


def decode_group(body: Object) -> SecurityGroup:
    """Read a security group's IPv4 permits."""
    ingress, egress = (
        tuple(map(_permit, entries(body, key, MOST_PERMITS)))
        for key in ("IpPermissions", "IpPermissionsEgress")
    )
    return SecurityGroup(ID.of(body, "GroupId"), ingress, egress)


def _permit(body: Object) -> Permit:
    return Permit(
        _protocol(body.get("IpProtocol")),
        _ports(body, "FromPort", "ToPort"),
        tuple(CIDR.of(r, "CidrIp") for r in entries(body, "IpRanges", MOST_PERMITS)),
        tuple(ID.of(g, "GroupId") for g in entries(body, "UserIdGroupPairs", MOST_PERMITS)),
        tuple(LIST_ID.of(p, "PrefixListId") for p in entries(body, "PrefixListIds", FEW)),
    )


def _protocol(said: Any) -> int:
    text = WORD.take("IpProtocol", said) if said != "-1" else str(ANY)
    return NUMBERS.get(text) or PROTOCOL.take("IpProtocol", _as_number(text))


def _as_number(text: str) -> object:
    return int(text) if text.lstrip("-").isascii() and text.lstrip("-").isdigit() else text


def _ports(body: Object, first: str, last: str) -> Ports | None:
    if body.get(first) is None or body.get(last) is None:
        return None
    ports = PORT.of(body, first), PORT.of(body, last)
    return None if ports in ((-1, -1), (0, 65535)) else ports


def decode_acl(body: Object) -> Acl:
    """Read a network ACL's IPv4 entries."""
    listed = entries(body, "Entries", MOST_ENTRIES, required=True)
    found = (_entry(e) for e in listed if e.get("CidrBlock"))
    return Acl(ACL_ID.of(body, "NetworkAclId"), tuple(found))


def _entry(body: Object) -> AclEntry:
    return AclEntry(
        RULE.of(body, "RuleNumber"),
        body.get("Egress") is True,
        body.get("RuleAction") == "allow",
        PROTOCOL.take("Protocol", _as_number(str(body.get("Protocol"))[:8])),
        CIDR.of(body, "CidrBlock"),
        _ports(inner(body, "PortRange"), "From", "To"),
    )


def decode_table(body: Object) -> VpcTable:
    """Read a route table's IPv4 routes, black holes too."""
    routes = entries(body, "Routes", MAX_ROUTES, required=True)
    found = (_route(r) for r in routes)
    return VpcTable(TABLE_ID.of(body, "RouteTableId"), tuple(r for r in found if r))


def _route(body: Object) -> VpcRoute | None:
    key = next((k for k in TARGETS if body.get(k)), None)
    target = TARGET.of(body, key) if key else UNKNOWN_TARGET
    is_active = WORD.of(body, "State") == ACTIVE
    if body.get("DestinationCidrBlock"):
        destination: IPv4Network | str = CIDR.of(body, "DestinationCidrBlock")
    elif body.get("DestinationPrefixListId"):
        destination = LIST_ID.of(body, "DestinationPrefixListId")
    else:
        return None  # of IPv6
    return VpcRoute(destination, target, is_active)


def decode_peering(body: Object) -> Peering:
    """Read a peering, whatever its state is."""
    sides = [inner(body, key) for key in ("RequesterVpcInfo", "AccepterVpcInfo")]
    cidrs: list[IPv4Network] = []
    for side in sides:
        blocks = entries(side, "CidrBlockSet", MAX_BLOCKS)
        cidrs += [CIDR.of(b, "CidrBlock") for b in blocks]
        if not blocks and side.get("CidrBlock"):
            cidrs.append(CIDR.of(side, "CidrBlock"))
    return Peering(
        PEERING_ID.of(body, "VpcPeeringConnectionId"),
        WORD.of(inner(body, "Status"), "Code"),
        tuple(VPC_ID.of(s, "VpcId") for s in sides if s.get("VpcId")),
        tuple(cidrs),
    )


def _public(body: Object) -> Iterator[IPv4Address]:
    for each in entries(body, "PrivateIpAddresses", MOST_ADDRESSES):
        if inner(each, "Association").get("PublicIp"):
            yield IPV4.of(each, "PrivateIpAddress")
