"""What the message of an entry says, without decoding it: a table may have 200,000 of them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from reconciler.core.datapath import ALIAS, MAC_STAMP, PROTOCOL, IpNetwork
from reconciler.domains.rule import BAND
from reconciler.engine.plan import Key
from reconciler.targets.netlink import tables
from reconciler.targets.netlink.message import HEADER, native
from reconciler.targets.netlink.tables import AF, value_of, values_of

STACKED = {"bond", "bridge", "ipvlan", "macvlan", "vlan"}
"""Links that copy the MAC of an interface below them, and so are not the ENI."""

ALIAS_START = f"{ALIAS}:".encode()
STAMP = bytes.fromhex(MAC_STAMP.replace(":", ""))

LINK_LOCAL = b"\xfe\x80"

Place = tuple[int, int, int, bytes, int, int]
"""Where a route is: family, table, length, network (nothing stands for zeroes), metric, TOS."""

RulePlace = tuple[int, int, int, int, bytes]
"""A rule's family, priority, table, mark and source: what tells ours from each other."""


def name_of(link: bytes) -> bytes:
    """Return a link's name."""
    return value_of(tables.LINKS, link, "IFLA_IFNAME").rstrip(b"\0")


def may_be_eni(link: bytes) -> bool:
    """Whether a link is Ethernet, and not stacked on another."""
    kind = native(link[HEADER.size + 2 : HEADER.size + 4])  # ``struct ifinfomsg``
    info = value_of(tables.LINKS, link, "IFLA_LINKINFO")
    return kind == tables.ARPHRD_ETHER and not (info and tables.read_link_kind(info) in STACKED)


def may_be_ours(link: bytes) -> bool:
    """Whether a link may be ours; decoding it tells."""
    return ALIAS_START in link or STAMP in link


def own_address(address: bytes) -> bytes:
    """Return the link's own address. IFA_ADDRESS may be the far end's."""
    local, either = values_of(tables.ADDRESSES, address, "IFA_LOCAL", "IFA_ADDRESS")
    return local or either


def may_have_route(address: bytes) -> bool:
    """Whether the kernel may have made a route for an address by itself, and it matters."""
    family, length = address[HEADER.size], address[HEADER.size + 1]  # ``struct ifaddrmsg``
    if (family, length) == (AF["ipv4"], 32):
        return False  # ``fib_add_ifaddr`` makes none
    own, flags = values_of(tables.ADDRESSES, address, "IFA_ADDRESS", "IFA_FLAGS")
    return not own.startswith(LINK_LOCAL) and not native(flags) & tables.IFA_F_NOPREFIXROUTE


def network_of(route: bytes) -> IpNetwork:
    """Return what a route leads to."""
    size = 4 if route[HEADER.size] == AF["ipv4"] else 16
    packed = value_of(tables.ROUTES, route, "RTA_DST").ljust(size, b"\0")
    return ip_network((packed, route[HEADER.size + 1]), strict=False)


def place_of(route: bytes) -> Place:
    """Return where a route is."""
    family, length, _, tos = route[HEADER.size : HEADER.size + 4]  # ``struct rtmsg``
    network, table, metric = values_of(
        tables.ROUTES, route, "RTA_DST", "RTA_TABLE", "RTA_PRIORITY"
    )
    return family, native(table), length, network, native(metric), tos


def places_of(keys: Iterable[Key]) -> set[Place]:
    """Return the places that are named by routes' keys."""
    found = set()
    for _, table, version, negative_length, network, metric, tos in keys:
        length, (family, size) = -int(negative_length), (2, 4) if version == 4 else (10, 16)
        packed = int(network).to_bytes(size, "big") if length else b""
        found.add((family, int(table), length, packed, int(metric), int(tos)))
    return found


def protocol_of(rule: bytes) -> int:
    """Return the number of who made a rule; 0 if it is not said."""
    return native(value_of(tables.RULES, rule, "FRA_PROTOCOL"))


def is_stamped(rule: bytes) -> bool:
    """Whether a rule is ours, by protocol and priority."""
    protocol, priority = values_of(tables.RULES, rule, "FRA_PROTOCOL", "FRA_PRIORITY")
    return native(protocol) == PROTOCOL and native(priority) in BAND


def rule_place_of(rule: bytes) -> RulePlace:
    """Return where a rule is."""
    *numbers, source = values_of(
        tables.RULES, rule, "FRA_PRIORITY", "FRA_TABLE", "FRA_FWMARK", "FRA_SRC"
    )
    priority, table, mark = map(native, numbers)
    return rule[HEADER.size], priority, table, mark, source
