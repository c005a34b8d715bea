"""Which entries of a table are taken, told by their bytes: a table may have 200,000 of them.

What others may add has limits: desired entries are read, and the first ones of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from ipaddress import ip_network

from reconciler.core.datapath import ALIAS, MAC_STAMP, PROTOCOL, IpNetwork
from reconciler.domains.rule import BAND
from reconciler.engine.converge import Observed
from reconciler.engine.plan import Key, Keyed
from reconciler.targets.netlink import tables
from reconciler.targets.netlink.message import native
from reconciler.targets.netlink.tables import AF, value_of, values_of

STACKED = {"bond", "bridge", "ipvlan", "macvlan", "vlan"}
"""Links that copy the MAC of an interface below them, and so are not the ENI."""

ALIAS_START = f"{ALIAS}:".encode()
STAMP = bytes.fromhex(MAC_STAMP.replace(":", ""))

MAX_IN_PLACE = 8
"""Routes, or rules, that may stand in one place of ours before the others count as surplus: some
of what tells them apart is looked at only when they are decoded."""

MAX_FOREIGN_RULES = 1000
"""Other owners' ``ip rule``s that are looked at, of each family, the first ones first: the kernel
tells them by priority, and what can hurt pods has to come before ours."""

Place = tuple[int, int, int, bytes, int, int]
"""Where a route is: family, table, length, network (nothing stands for zeroes), metric, TOS."""

RulePlace = tuple[int, int, int, int, bytes]
"""A rule's family, priority, table, mark and source: what tells ours from each other."""


def name_of(link: bytes) -> bytes:
    """Return a link's name."""
    return value_of(tables.LINKS, link, "IFLA_IFNAME").rstrip(b"\0")


def may_be_eni(link: bytes) -> bool:
    """Whether a link is Ethernet, and not stacked on another."""
    info = value_of(tables.LINKS, link, "IFLA_LINKINFO")
    is_stacked = info and tables.read_link_kind(info) in STACKED
    return native(link[2:4]) == tables.ARPHRD_ETHER and not is_stacked  # ``struct ifinfomsg``


def may_be_ours(link: bytes) -> bool:
    """Whether a link may be ours; decoding it tells."""
    return ALIAS_START in link or STAMP in link


def own_address(address: bytes) -> bytes:
    """Return the link's own address. IFA_ADDRESS may be the far end's."""
    local, either = values_of(tables.ADDRESSES, address, "IFA_LOCAL", "IFA_ADDRESS")
    return local or either


def may_have_route(address: bytes) -> bool:
    """Whether the kernel may have made a route for an address by itself, and it matters."""
    if (address[0], address[1]) == (AF["ipv4"], 32):  # ``struct ifaddrmsg``
        return False  # ``fib_add_ifaddr`` makes none
    own, flags = values_of(tables.ADDRESSES, address, "IFA_ADDRESS", "IFA_FLAGS")
    return not own.startswith(b"\xfe\x80") and not native(flags) & tables.IFA_F_NOPREFIXROUTE


def network_of(route: bytes) -> IpNetwork:
    """Return what a route leads to."""
    size = 4 if route[0] == AF["ipv4"] else 16
    packed = value_of(tables.ROUTES, route, "RTA_DST").ljust(size, b"\0")
    return ip_network((packed, route[1]), strict=False)


def place_of(route: bytes) -> Place:
    """Return where a route is."""
    family, length, _, tos = route[:4]  # ``struct rtmsg``
    names = "RTA_DST", "RTA_TABLE", "RTA_PRIORITY"
    network, table, metric = values_of(tables.ROUTES, route, *names)
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
    names = "FRA_PRIORITY", "FRA_TABLE", "FRA_FWMARK", "FRA_SRC"
    priority, table, mark, source = values_of(tables.RULES, rule, *names)
    return rule[0], native(priority), native(table), native(mark), source


class Surplus:
    """Takes some entries in the places of desired objects, and the first ones of all others."""

    def __init__(
        self,
        limit: int,
        place_of: Callable[[bytes], Hashable] = lambda _: None,
        wanted: Collection[Hashable] = (),
    ) -> None:
        self._limit = self._room = limit
        self._place_of = place_of
        self._left = dict.fromkeys(wanted, MAX_IN_PLACE)
        self._taken: set[bytes] = set()
        self._first = b""
        self.left_out = 0

    def __call__(self, entry: bytes) -> bool:
        """Whether this one is taken; what was taken once is taken again, as dumps are repeated."""
        if entry in self._taken:
            if entry == self._first:
                self.left_out = 0
            return True
        place = self._place_of(entry)
        if self._left.get(place):
            self._left[place] -= 1
        elif self._room:
            self._room -= 1
        else:
            self.left_out += 1
            return False
        self._first = self._first or entry
        self._taken.add(entry)
        return True

    def among(self, kind: type[Keyed], objects: Iterable[Keyed]) -> Observed:
        """Return what was made of those that were taken, and say so if there are more."""
        if not self.left_out:
            return Observed(objects)
        why = (
            f"{self._limit + self.left_out} {kind.kind}s are stamped as ours and nothing needs "
            f"them; they are removed, {self._limit} with each look; find out who adds them"
        )
        return Observed(objects, cut_kinds={kind: why})


class FirstRules:
    """Takes the first rules of other owners, ``MAX_FOREIGN_RULES`` of each family."""

    def __init__(self) -> None:
        self._by_family = {number: Surplus(MAX_FOREIGN_RULES) for number in AF.values()}

    def __call__(self, rule: bytes) -> bool:
        """Whether this one is taken."""
        return self._by_family[rule[0]](rule)

    def unread(self) -> Iterator[tuple[str, str]]:
        """Name the families of which there are more, and say why they are not read."""
        for name, number in AF.items():
            if left_out := self._by_family[number].left_out:
                why = (
                    f"there are {MAX_FOREIGN_RULES + left_out}, and the first {MAX_FOREIGN_RULES} "
                    f"are read; what the other {left_out} do to pods' packets is not known; find "
                    "out who adds them"
                )
                yield f"ip rules of others, {name}", why
