"""The kernel's network objects through rtnetlink: what is there.

Sockets are opened and closed within each call, so that they never leave their thread.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_network
from operator import attrgetter
from typing import Any, NamedTuple

from pyroute2.netlink.exceptions import NetlinkError

from reconciler.core.attachment import MAX_POD_ADDRESSES
from reconciler.core.datapath import (
    ALIAS,
    FAMILIES,
    LOCAL_TABLE,
    MAC_STAMP,
    MAIN_TABLE,
    PODS_TABLE,
    PROTOCOL,
    IpAddress,
    IpNetwork,
    host_network,
)
from reconciler.core.remembered import Remembered
from reconciler.diagnostics.foreign import ForeignRule
from reconciler.diagnostics.lookup import Found, Packet
from reconciler.domains.address import LinkAddress
from reconciler.domains.inputs import Links
from reconciler.domains.link import EniLink, PodLink, Veth, is_owned
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import BAND, Rule
from reconciler.engine.observed import Observed
from reconciler.engine.plan import Change, Key, Verb
from reconciler.errors import ApplyError, InternalError, NamespaceError, ObserveError, boundary
from reconciler.targets.netlink.decode import (
    RTPROT_KERNEL,
    Connected,
    Ends,
    HostLinks,
    Pairs,
    PodTables,
    decode_address,
    decode_foreign_rule,
    decode_link,
    decode_links,
    decode_neighbours,
    decode_pod,
    decode_route,
    decode_routes,
    decode_rule,
    family_name,
    find_connected,
    tell_apart,
)
from reconciler.targets.netlink.namespaces import entered
from reconciler.targets.netlink.rtnetlink import (
    ADDRESSES,
    AF,
    HEADER,
    LINKS,
    LOCAL_ROUTES,
    NEIGHBOURS,
    POD_BOUNDS,
    ROUTES,
    RTN_UNICAST,
    RULES,
    Attributes,
    Bounds,
    Facts,
    Memory,
    Rtnetlink,
    Table,
    Told,
    attribute,
    attributes,
    decode_message,
    index_of,
    may_be_eni,
    name_of,
)
from reconciler.targets.netlink.write import IFA_F_NOPREFIXROUTE, KernelObject, Sessions, apply_one

RTM_F_LOOKUP_TABLE = 0x1000
RTM_F_FIB_MATCH = 0x2000

MATCH_FLAGS = {4: RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH, 6: RTM_F_FIB_MATCH}
"""By version: flags of the question which route a packet would take. IPv4's answer names the
route's table only with RTM_F_LOOKUP_TABLE. IPv6's always does, and refuses that flag with EINVAL
on a socket with strict checks (inet6_rtm_valid_getroute_req)."""

ALIAS_START = f"{ALIAS}:".encode()
STAMP = bytes.fromhex(MAC_STAMP.replace(":", ""))

LINK_LOCAL = b"\xfe\x80"

MAX_FOREIGN_RULES = 1000
"""Other owners' ``ip rule``s that are looked at, of each family, the first ones first: the kernel
tells them by priority, and what can hurt pods has to come before ours."""

MAX_SURPLUS = 1000
"""Routes, and rules, that carry our protocol number and that nothing desires, in one look. They
are removed, so the next observation shows the next ones. With all of them at once, 80,000 that
somebody else adds would end the daemon for memory, and the next one at its start; and pods would
wait while they are removed."""

MAX_IN_PLACE = 8
"""Routes, or rules, that may stand in one place of ours before the others count as surplus: some
of what tells them apart is looked at only when they are decoded."""

MAX_SURPLUS_LINKS = 8
"""The same of links: to delete a pair takes the kernel some 10 ms."""

MAX_UNKNOWN = 32
"""Links of ours of which no address can be found, in one look. One is enough for no pod to be
given an address, so the links after them are not asked about until the next observation."""

FIB_BOUNDS = Bounds(16 << 20, 30, 10.0)
"""For who traces a connection, and needs whole tables: some 200,000 routes."""

MALFORMED = (LookupError, ValueError, TypeError, OverflowError, struct.error)
"""What may come of an entry that has another form than is expected."""

HOSTILE = (NetlinkError, ObserveError, OSError, *MALFORMED)
"""What may come of what a pod has in its own namespace; it concerns that pod alone."""

GONE = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL}
"""What the kernel answers when a thing to delete does not exist: the wish is fulfilled."""

UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}
"""What it answers when it is asked for a route and has none, or one that says no."""


class Fib(NamedTuple):
    """Everything the host's lookups go by, other owners' objects included."""

    rules: frozenset[Rule]
    routes: frozenset[Route]
    addresses: frozenset[IpAddress]
    unread: tuple[tuple[str, str], ...] = ()


@dataclass
class Inside:
    """What is wanted in one pod's namespace.

    Attributes:
        names: of links of ours; one, but for a moment.
        gateways: addresses of neighbours.
        routes: their keys.
    """

    names: set[str] = field(default_factory=set)
    gateways: set[IpAddress] = field(default_factory=set)
    routes: set[Key] = field(default_factory=set)


class SeenPod(NamedTuple):
    """What was made of a pod's tables."""

    digest: bytes
    ends: Ends
    objects: frozenset[KernelObject]


class Netlink:
    """Links, addresses, neighbours, routes and rules of this namespace and of pods'.

    What says the same as at the last observation is not made into objects again.
    """

    def __init__(self) -> None:
        self._memory: Memory = {}
        self._pairs: Pairs = {}
        self._tell_apart = Remembered(tell_apart)
        self._decode_links = Remembered(decode_links)
        self._decode_routes = Remembered(decode_routes)
        self._seen_pods: dict[str, SeenPod] = {}
        self._unread_rules: tuple[tuple[str, str], ...] = ()

    def _host(self) -> Rtnetlink:
        return Rtnetlink(self._memory)

    def links(self) -> Links:
        """Tell ENIs' links from pods'.

        Raises:
            ObserveError: the kernel could not be read.
        """
        others: dict[str, str] = {}

        def is_ours(link: bytes) -> bool:
            if _may_be_ours(link):
                return True
            if may_be_eni(link):  # there may be 20,000, so no more of them is looked at
                mac = attribute(LINKS, link, "IFLA_ADDRESS").hex(":")
                others.setdefault(mac, name_of(link).decode(errors="replace"))
            return False

        with _reading("links"), self._host() as host:
            messages = host.decode(LINKS, host.read(LINKS, takes=is_ours), "perhaps ours")
        links: Links = self._tell_apart(messages)
        return replace(links, names={**others, **links.names})

    def foreign_rules(self) -> tuple[ForeignRule, ...]:
        """Return the ``ip rule``s of other owners, the kernel's own three left out.

        Not more than ``MAX_FOREIGN_RULES`` of a family; ``unread_rules`` names the rest.

        Raises:
            ObserveError: the kernel could not be read.
        """
        found: list[ForeignRule] = []
        first = {name: _Surplus(MAX_FOREIGN_RULES, lambda _: None) for name in FAMILIES}
        with _reading("other owners' rules"), self._host() as host:
            for name, some in first.items():
                told = host.read(RULES, takes=partial(_is_foreign_of, some), family=AF[name])
                found += [
                    decode_foreign_rule(message, name)
                    for message in host.decode(RULES, told, ("foreign", name))
                ]
        self._unread_rules = tuple(_name_unread(first))
        return tuple(found)

    def unread_rules(self) -> tuple[tuple[str, str], ...]:
        """Say what ``foreign_rules`` has left out the last time, and why."""
        return self._unread_rules

    def pod_addresses(self) -> dict[str, tuple[IpAddress, ...]]:
        """Where the pods' table leads: addresses by the host end of a pod's link, IPv4 first.

        Of a link with more than ``MAX_POD_ADDRESSES``, one more than that.

        Raises:
            ObserveError: the kernel could not be read.
        """
        found: dict[int, set[bytes]] = {}

        def note(route: bytes) -> bool:
            own, way = attributes(ROUTES, route, "RTA_DST", "RTA_OIF")
            if route[HEADER.size + 1] == 8 * len(own):
                device = int.from_bytes(way, sys.byteorder)
                held = found.setdefault(device, set())
                if len(held) <= MAX_POD_ADDRESSES:
                    held.add(own)
            return False

        with _reading("the pods' routes"), self._host() as host:
            filters = (("RTA_TABLE", PODS_TABLE),)
            for number in AF.values():
                _routes_of(host, filters, note, family=number, proto=PROTOCOL)
        names: dict[int, str] = {}
        _learn_names(names, ({"oif": index} for index in found))
        return {
            names[index]: tuple(map(ip_address, sorted(held, key=lambda a: (len(a), a))))
            for index, held in found.items()
            if index in names
        }

    def addresses_behind(self, links: Iterable[str]) -> dict[str, tuple[IpAddress, ...]]:
        """Say which addresses the pods behind some host ends may have.

        First by the host's own neighbours, then by the pod's own link. What is on that is up to
        the pod; the kernel shows it by the number of the namespace (IFA_TARGET_NETNSID, Linux
        4.20), so its path need not be known.

        Raises:
            ObserveError: the host's neighbours could not be read.
        """
        found: dict[str, tuple[IpAddress, ...]] = {}
        unknown = 0
        for name in links:
            if unknown == MAX_UNKNOWN:
                break
            with _reading(f"what is behind {name}"), self._host() as host:
                link = _get(host, LINKS, (("IFLA_IFNAME", name),))
                told = _neighbours_of(host, link["index"]) if link else ()
            if not 0 < len(told) <= MAX_POD_ADDRESSES:
                told = _addresses_at(link) if link else []
            unknown += not told
            found[name] = tuple(sorted(set(told), key=lambda a: (a.version, int(a))))
        return found

    def occupied(
        self, addresses: Iterable[IpAddress], networks: Iterable[IpNetwork]
    ) -> dict[IpNetwork, str]:
        """Say which of these the host takes for its own, and where that is said.

        Args:
            addresses: of which each is looked for.
            networks: in which any address is.

        Raises:
            ObserveError: the kernel could not be read.
        """
        sought = Sought.of(addresses, networks)
        found: dict[IpNetwork, str] = {}
        if not sought:
            return found
        with _reading("the host's own addresses"), self._host() as host:
            for number in AF.values():
                table = (("RTA_TABLE", LOCAL_TABLE),)
                for message in host.read(LOCAL_ROUTES, table, sought.meets, family=number):
                    network, kind = _local_network(message), message[HEADER.size + 7]
                    found[network] = f"a route of type {ROUTE_TYPES[kind]} in table local"
                for message in host.read(ADDRESSES, (), sought.has_address, family=number):
                    facts = decode_message(ADDRESSES, message)
                    own = ip_address(facts.get("local") or facts.get("address"))
                    names: dict[int, str] = {}
                    _learn_names(names, [{"oif": facts["index"]}])
                    device = names.get(facts["index"], "a link that is gone by now")
                    where = f"ip address delete {own}/{facts['prefixlen']} dev {device}"
                    found[host_network(own)] = f"it is on {device} ({where})"
        return found

    def fib(self) -> Fib:
        """Read every unicast route and address of the host, and its rules.

        Of other owners' rules only those that ``foreign_rules`` reads; the rest is named.

        Raises:
            ObserveError: the kernel could not be read.
        """
        with (
            _reading("the host's rules, routes and addresses"),
            Rtnetlink(None, FIB_BOUNDS) as host,
        ):
            names = {m["index"]: m.get("ifname") for m in host.dump(LINKS)}
            first = {name: _Surplus(MAX_FOREIGN_RULES, lambda _: None) for name in FAMILIES}
            rules = {
                decode_rule(m, name)
                for name, some in first.items()
                for m in host.decode(
                    RULES, host.read(RULES, takes=partial(_is_walked, some), family=AF[name])
                )
            }
            routes = [decode_route(m, "", names) for m in _all_routes(host)]
            connected = find_connected(routes)
            addresses = [decode_address(m, "", names, connected) for m in host.dump(ADDRESSES)]
        return Fib(
            frozenset(rules),
            frozenset(r for r in routes if r),
            frozenset(a.address for a in addresses),
            tuple(_name_unread(first)),
        )

    def look_up(self, packet: Packet, netns: str = "") -> Found:
        """Ask the kernel where a packet would go, as ``ip route get`` does.

        Args:
            packet: what is sent.
            netns: identity of the namespace that is asked; "" for the host's.

        Raises:
            ObserveError: it could not be asked.
        """
        from pyroute2.iproute import IPRoute  # with an event loop, for who traces only

        family = AF[family_name(packet.destination.version)]
        words: dict[str, Any] = {"dst": str(packet.destination), "mark": packet.mark}
        if packet.source is not None:
            words["src"] = str(packet.source)
        inside = entered(netns) if netns else nullcontext()
        with _reading(f"the answer to '{packet.command}'"), inside, IPRoute() as ip:
            if packet.link:
                words["iif"] = next(iter(ip.link_lookup(ifname=packet.link)), 0)
            try:
                (answer,) = ip.route("get", family=family, flags=RTM_F_LOOKUP_TABLE, **words)
            except NetlinkError as error:
                return Found(0, "", refusal=os.strerror(error.code))
            gateway = answer.get("gateway")
            (out,) = ip.get_links(answer.get("oif"))
            via = ip_address(gateway) if gateway else None
            return Found(answer.get("table"), out.get("ifname"), via)

    def observe(self, desired: Iterable[KernelObject]) -> Observed:
        """Read the host's objects, and those of every pod namespace a desired object lives in.

        Of ENIs' links and their addresses only those are shown that are desired, or over which
        something desired leads; of other owners' routes only those in the place of a desired one;
        and of neighbours only those of desired addresses.

        Raises:
            ObserveError: the host's links could not be read.
        """
        desired = list(desired)
        with _reading("the host's links"), self._host() as host:
            seen, links = self._observe_links(host, desired)
        self._pairs = links.pairs
        for kind, what, read in (
            (LinkAddress, "the addresses of ENIs' links", _read_addresses),
            (Neighbour, "the host's neighbours", _read_neighbours),
            (Route, "the host's routes", self._read_routes),
            (Rule, "the host's rules", _read_rules),
        ):
            try:
                with _reading(what), self._host() as host:
                    seen = seen.with_these(read(host, desired, links.names))
            except ObserveError as error:
                seen = seen.with_these(Observed(unread_kinds={kind: error}))
            except MALFORMED as error:
                unread = ObserveError(what, f"{type(error).__name__}: {error}")
                unread.__cause__ = error
                seen = seen.with_these(Observed(unread_kinds={kind: unread}))
        here = {o.pod_netns for o in desired if isinstance(o, Veth)}
        self._seen_pods = {path: pod for path, pod in self._seen_pods.items() if path in here}
        return seen.with_these(self._observe_pods(desired, links.pairs))

    def observe_at(self, places: Iterable[KernelObject]) -> Observed:
        """Read what stands in the places of these objects of pods, and their namespaces.

        Of the host nothing is dumped, so the cost does not grow with other pods.

        Raises:
            ObserveError: the kernel could not be read.
        """
        places = list(places)
        with _reading("links and routes of single pods"), self._host() as host:
            objects, pairs = _observe_places(host, places)
        return Observed(objects).with_these(self._observe_pods(places, pairs))

    def observe_inside(self, places: Iterable[KernelObject]) -> Observed:
        """Read only pods' namespaces, by what the last look at the host has found of their links.

        Raises nothing: each namespace that cannot be read is named in the answer.
        """
        return self._observe_pods(places, self._pairs)

    def _observe_links(
        self, host: Rtnetlink, desired: Iterable[KernelObject]
    ) -> tuple[Observed, HostLinks]:
        """Read those of which something is desired, and some of ours besides."""
        veths = {o.name for o in desired if isinstance(o, Veth)}
        enis = [o for o in desired if isinstance(o, EniLink)]
        names = veths | {o.name for o in enis} | _devices(desired)
        raw = frozenset(name.encode() for name in names)
        macs = frozenset(bytes.fromhex(o.mac.replace(":", "")) for o in enis)
        surplus = _Surplus(MAX_SURPLUS_LINKS, index_of)

        def takes(link: bytes) -> bool:
            is_wanted = name_of(link) in raw or attribute(LINKS, link, "IFLA_ADDRESS") in macs
            return is_wanted or (_may_be_ours(link) and surplus(link))

        messages = host.decode(LINKS, host.read(LINKS, takes=takes), "ours")
        links: HostLinks = self._decode_links(messages, veths)
        return surplus.among(Veth, links.objects.values()), links

    def _read_routes(
        self, host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
    ) -> Observed:
        """Read those with our stamp, and what stands in the place of one that is not among them.

        Of those that nobody desires, not more than ``MAX_SURPLUS``.
        """
        wanted = {o.key for o in desired if isinstance(o, Route) and not o.netns}
        surplus = _Surplus(MAX_SURPLUS, _whole_place_of, _whole_places(wanted))
        messages = [
            m
            for number in AF.values()
            for m in host.decode(
                ROUTES,
                _routes_of(host, (), surplus, family=number, proto=PROTOCOL),
                ("ours", number),
            )
        ]
        known = dict(names)
        _learn_names(known, messages)
        ours: frozenset[Route] = self._decode_routes(messages, known)
        missing = _scope(wanted - {r.key for r in ours})
        for where, told in _in_places(host, missing):
            others = host.decode(ROUTES, told, ("in the way", where))
            _learn_names(known, others)
            ours |= {r for r in decode_routes(others, known) if r.key in wanted}
        return surplus.among(Route, ours)

    def _observe_pods(self, desired: Iterable[KernelObject], pairs: Pairs) -> Observed:
        wanted: dict[str, Inside] = {}
        for o in desired:
            match o:
                case PodLink():
                    wanted.setdefault(o.netns, Inside()).names.add(o.name)
                case Neighbour():
                    wanted.setdefault(o.netns, Inside()).gateways.add(o.address)
                case Route():
                    wanted.setdefault(o.netns, Inside()).routes.add(o.key)
                case LinkAddress():
                    wanted.setdefault(o.netns, Inside())
                case _:
                    pass
        wanted.pop("", None)
        objects: set[KernelObject] = set()
        unread: dict[str, NamespaceError] = {}
        for path in sorted(wanted):
            try:
                with entered(path):
                    inside = Rtnetlink(None, POD_BOUNDS)
                with inside:
                    tables = _read_pod(inside, wanted[path])
                objects |= self._recognise(tables, path, pairs)
            except HOSTILE as error:
                # Whoever owns the pod may have anything in there, and change it while we read.
                why = error.why if isinstance(error, ObserveError) else str(error)
                what = f"its {error.what}: " if isinstance(error, ObserveError) else ""
                unread[path] = NamespaceError(path, f"{what}{why or type(error).__name__}")
                unread[path].__cause__ = error
        return Observed(objects, unread_places=unread)

    def _recognise(self, tables: PodTables, path: str, pairs: Pairs) -> frozenset[KernelObject]:
        digest, seen = tables.digest, self._seen_pods.get(path)
        if (
            seen is None
            or seen.digest != digest
            or any(pairs.get(end, "") != veth for end, veth in seen.ends)
        ):
            ends, objects = decode_pod(tables, path, pairs)
            seen = self._seen_pods[path] = SeenPod(digest, ends, objects)
        return seen.objects

    def apply(self, actions: Sequence[Change[KernelObject]]) -> tuple[ApplyError, ...]:
        """Carry out actions in order, each namespace entered once; return what failed."""
        failures: list[ApplyError] = []
        with Sessions() as sessions:
            for action in actions:
                try:
                    with boundary("apply of a kernel object"):
                        failures += _attempt(sessions, action)
                except InternalError as error:  # of this object: no other waits for it
                    failures.append(ApplyError.from_surprise(str(action), error))
        return tuple(failures)


def _attempt(sessions: Sessions, action: Change[KernelObject]) -> Iterator[ApplyError]:
    """Carry out one action; yield what failed."""
    try:
        apply_one(sessions, action)
    except NetlinkError as error:
        if action.verb is not Verb.DELETE or error.code not in GONE:
            yield ApplyError.from_errno(str(action), error.code, os.strerror(error.code), error)
    except OSError as error:
        yield ApplyError.from_errno(str(action), error.errno or 0, str(error), error)


ROUTE_TYPES = {
    2: "local",
    3: "broadcast",
    4: "anycast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
}
"""What else but ``unicast`` ends a packet's way (linux/rtnetlink.h, RTN_*)."""


class Sought(NamedTuple):
    """Addresses that are looked for in the host's tables.

    Attributes:
        single: as the kernel says them.
        networks: likewise: network, mask and length in bytes.
    """

    single: frozenset[bytes]
    networks: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, addresses: Iterable[IpAddress], networks: Iterable[IpNetwork]) -> Sought:
        """Pack them."""
        spans = {(int(n.network_address), int(n.netmask), n.max_prefixlen // 8) for n in networks}
        return cls(frozenset(a.packed for a in addresses), tuple(sorted(spans)))

    def __bool__(self) -> bool:
        return bool(self.single or self.networks)

    def has(self, packed: bytes) -> bool:
        """Whether an address is among them."""
        number, size = int.from_bytes(packed, "big"), len(packed)
        return packed in self.single or any(
            size == length and number & mask == network for network, mask, length in self.networks
        )

    def has_address(self, message: bytes) -> bool:
        """Whether an address of the host is."""
        return self.has(_own_address(message))

    def meets(self, route: bytes) -> bool:
        """Whether a route of table local covers any of them."""
        if route[HEADER.size + 7] not in ROUTE_TYPES:
            return False
        length, packed = route[HEADER.size + 1], attribute(ROUTES, route, "RTA_DST")
        if length == 8 * len(packed):
            return self.has(packed)
        span = _local_network(route)
        size, first, mask = span.max_prefixlen // 8, int(span.network_address), int(span.netmask)
        return any(
            len(s) == size and int.from_bytes(s, "big") & mask == first for s in self.single
        ) or any(
            length == size and (first & m == network or network & mask == first)
            for network, m, length in self.networks
        )


def _local_network(route: bytes) -> IpNetwork:
    """Return what a route leads to."""
    length = route[HEADER.size + 1]
    size = 4 if route[HEADER.size] == AF["ipv4"] else 16
    packed = attribute(ROUTES, route, "RTA_DST").ljust(size, b"\0")
    return ip_network((packed, length), strict=False)


def _neighbours_of(host: Rtnetlink, link: int) -> list[IpAddress]:
    """Return whom the host has a permanent neighbour for, on one link: we have made it."""
    return [
        ip_address(decode_message(NEIGHBOURS, m)["dst"])
        for number in AF.values()
        for m in host.read(NEIGHBOURS, (("NDA_IFINDEX", link),), family=number)
    ]


def _addresses_at(link: Facts) -> list[IpAddress]:
    """Return the addresses of the other end of a link, but for the kernel's own of IPv6."""
    nsid, index = link.get("link_netnsid"), link.get("link")
    if nsid is None or index is None:
        return []
    filters = (("IFA_TARGET_NETNSID", nsid),)
    try:
        with Rtnetlink(None, POD_BOUNDS) as host:
            told = [
                decode_message(ADDRESSES, m)
                for number in AF.values()
                for m in host.read(ADDRESSES, filters, family=number, index=index)
            ]
        found = [ip_address(m.get("local") or m.get("address")) for m in told]
    except (NetlinkError, ObserveError, OSError, ValueError):
        return []  # then it is not known
    return [a for a in found if not (a.version == 6 and a.is_link_local)]


def _devices(desired: Iterable[KernelObject]) -> set[str]:
    """Name the host's links that desired addresses, neighbours and routes are of."""
    kinds = LinkAddress | Neighbour | Route
    return {o.device for o in desired if isinstance(o, kinds) and not o.netns}


def _may_be_ours(link: bytes) -> bool:
    """Whether a link is ours, perhaps: who decodes it looks closer."""
    return ALIAS_START in link or STAMP in link


class _Surplus:
    """Takes what stands in the places of what is wanted, and the first ones of all else.

    Args:
        limit: how many it takes of all else.
        place_of: where an entry stands.
        wanted: those places.
    """

    def __init__(
        self,
        limit: int,
        place_of: Callable[[bytes], Hashable],
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
        body = entry[HEADER.size :]
        if body in self._taken:
            if body == self._first:
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
        self._first = self._first or body
        self._taken.add(body)
        return True

    def among(self, kind: type[KernelObject], objects: Iterable[KernelObject]) -> Observed:
        """Return what was made of those that were taken, and say so if there are more."""
        if not self.left_out:
            return Observed(objects)
        why = (
            f"{self._limit + self.left_out} {kind.kind}s are stamped as ours and nothing needs "
            f"them; they are removed, {self._limit} with each look; find out who adds them"
        )
        return Observed(objects, cut_kinds={kind: why})


def _is_foreign_of(first: _Surplus, rule: bytes) -> bool:
    """Whether a rule is neither ours nor one of the kernel's own, and among the first of those."""
    (protocol,) = attributes(RULES, rule, "FRA_PROTOCOL")
    return protocol != bytes([RTPROT_KERNEL]) and not _is_stamped(rule) and first(rule)


def _is_walked(first: _Surplus, rule: bytes) -> bool:
    """Whether a rule is ours, one of the kernel's own, or among the first of the others."""
    (protocol,) = attributes(RULES, rule, "FRA_PROTOCOL")
    return protocol in (bytes([RTPROT_KERNEL]), bytes([PROTOCOL])) or first(rule)


def _name_unread(first: Mapping[str, _Surplus]) -> Iterator[tuple[str, str]]:
    """Name the families of which there are more rules of others than are read."""
    for name, some in first.items():
        if some.left_out:
            count = MAX_FOREIGN_RULES + some.left_out
            why = (
                f"there are {count}, and the first {MAX_FOREIGN_RULES} are read; what the other "
                f"{some.left_out} do to pods' packets is not known; find out who adds them"
            )
            yield f"ip rules of others, {name}", why


def _is_stamped(rule: bytes) -> bool:
    protocol, priority = attributes(RULES, rule, "FRA_PROTOCOL", "FRA_PRIORITY")
    return protocol == bytes([PROTOCOL]) and int.from_bytes(priority, sys.byteorder) in BAND


RulePlace = tuple[int, int, int, int, bytes]
"""A rule's family, priority, table, mark and source: what tells ours from each other."""


def _rule_place(rule: bytes) -> RulePlace:
    *numbers, source = attributes(
        RULES, rule, "FRA_PRIORITY", "FRA_TABLE", "FRA_FWMARK", "FRA_SRC"
    )
    priority, table, mark = (int.from_bytes(n, sys.byteorder) for n in numbers)
    return rule[HEADER.size], priority, table, mark, source


def _read_rules(
    host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
) -> Observed:
    """Read ours; of those that nobody desires, not more than ``MAX_SURPLUS``."""
    del names
    wanted = {
        (AF[o.family], o.priority, o.table, o.mark or 0, _packed(o.source))
        for o in desired
        if isinstance(o, Rule)
    }
    surplus = _Surplus(MAX_SURPLUS, _rule_place, wanted)

    def takes(rule: bytes) -> bool:
        return _is_stamped(rule) and surplus(rule)

    rules = set()
    for name in FAMILIES:
        told = host.read(RULES, takes=takes, family=AF[name])
        for content, message in zip(told, host.decode(RULES, told, ("ours", name)), strict=True):
            rules.add(replace(decode_rule(message, name), told=content[HEADER.size :]))
    return surplus.among(Rule, rules)


def _packed(network: IpNetwork | None) -> bytes:
    return network.network_address.packed if network else b""


def _read_neighbours(
    host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
) -> set[KernelObject]:
    """Ask for them one by one: there may be as many others as somebody likes."""
    indices = {name: index for index, name in names.items()}
    wanted = [o for o in desired if isinstance(o, Neighbour) and not o.netns]
    told = [
        message
        for o in wanted
        if o.device in indices
        for message in _read_neighbour(host, o.address, indices[o.device])
    ]
    return decode_neighbours(host.decode(NEIGHBOURS, tuple(told)), "", names)


def _read_addresses(
    host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
) -> set[KernelObject]:
    """Read the desired ones, whatever else others have put on those links."""
    wanted: dict[str, set[bytes]] = {}
    for o in desired:
        if isinstance(o, LinkAddress) and not o.netns:
            wanted.setdefault(o.device, set()).add(o.address.packed)
    objects: set[KernelObject] = set()
    for index, name in names.items():
        if name not in wanted:
            continue
        told = _addresses_of(host, index, partial(_is_one_of, wanted[name]))
        connected: Connected = set()
        if any(map(_may_have_route, told)):
            connected = find_connected(
                decode_route(decode_message(ROUTES, m), "", names)
                for told_routes in _connected_of(host, index, wanted[name])
                for m in told_routes
            )
        objects |= {
            decode_address(m, "", names, connected) for m in host.decode(ADDRESSES, told, index)
        }
    return objects


def _is_one_of(wanted: Collection[bytes], address: bytes) -> bool:
    return _own_address(address) in wanted


def _own_address(message: bytes) -> bytes:
    """Return what is the link's own of an address: the other may be the far end's."""
    local = attribute(ADDRESSES, message, "IFA_LOCAL")
    return local or attribute(ADDRESSES, message, "IFA_ADDRESS")


def _addresses_of(
    where: Rtnetlink, link: int, takes: Callable[[bytes], bool] | None = None
) -> Told:
    """Read a link's addresses, of both families; none if it is gone by now."""
    try:
        return tuple(
            m
            for number in AF.values()
            for m in where.read(ADDRESSES, (), takes, family=number, index=link)
        )
    except NetlinkError as error:
        if error.code in GONE:
            return ()
        raise


def _may_have_route(address: bytes) -> bool:
    """Whether the kernel may have made a route for an address by itself, and it matters."""
    family, length = address[HEADER.size], address[HEADER.size + 1]  # ``struct ifaddrmsg``
    if (family, length) == (AF["ipv4"], 32):
        return False  # ``fib_add_ifaddr`` makes none
    if attribute(ADDRESSES, address, "IFA_ADDRESS").startswith(LINK_LOCAL):
        return False
    flags = attribute(ADDRESSES, address, "IFA_FLAGS")
    return not int.from_bytes(flags, sys.byteorder) & IFA_F_NOPREFIXROUTE


def _connected_of(
    where: Rtnetlink, link: int, addresses: Collection[bytes] = ()
) -> tuple[Told, ...]:
    """Read the routes that the kernel has made by itself for a link's addresses.

    Args:
        where: it is.
        link: its index.
        addresses: all that matter; every one, if none are named.
    """
    filters = (("RTA_TABLE", MAIN_TABLE), ("RTA_OIF", link))

    def leads_to_one(route: bytes) -> bool:
        network = _local_network(route)
        return any(
            len(a) == network.max_prefixlen // 8 and ip_address(a) in network for a in addresses
        )

    takes = leads_to_one if addresses else None
    return tuple(
        _routes_of(where, filters, takes, family=number, proto=RTPROT_KERNEL, type=RTN_UNICAST)
        for number in AF.values()
    )


def _routes_of(
    where: Rtnetlink,
    filters: Attributes,
    takes: Callable[[bytes], bool] | None = None,
    **fields: int,
) -> Told:
    """Read routes; none if there is no such table, or no such link."""
    try:
        return where.read(ROUTES, filters, takes, **fields)
    except NetlinkError as error:
        if error.code in GONE:
            return ()
        raise


Place = tuple[int, bytes, int, int]
"""A route's length, network (nothing stands for zeroes), metric and TOS."""


def _place_of(route: bytes) -> Place:
    return _whole_place_of(route)[1]


def _scope(keys: Iterable[Key]) -> dict[tuple[int, int], set[Place]]:
    """Return the places that are named by routes' keys, by family and table."""
    found: dict[tuple[int, int], set[Place]] = {}
    for _, table, version, negative_length, network, metric, tos in keys:
        length, size = -int(negative_length), 4 if version == 4 else 16
        packed = int(network).to_bytes(size, "big") if length else b""
        place = length, packed, int(metric), int(tos)
        found.setdefault((AF[family_name(int(version))], int(table)), set()).add(place)
    return found


def _whole_place_of(route: bytes) -> tuple[tuple[int, int], Place]:
    family, length, _, tos = route[HEADER.size : HEADER.size + 4]  # ``struct rtmsg``
    network, table, metric = attributes(ROUTES, route, "RTA_DST", "RTA_TABLE", "RTA_PRIORITY")
    number = int.from_bytes(table, sys.byteorder)
    return (family, number), (length, network, int.from_bytes(metric, sys.byteorder), tos)


def _whole_places(keys: Iterable[Key]) -> set[tuple[tuple[int, int], Place]]:
    return {(where, place) for where, places in _scope(keys).items() for place in places}


def _in_places(
    where: Rtnetlink, places: Mapping[tuple[int, int], set[Place]]
) -> Iterator[tuple[tuple[int, int], Told]]:
    """Go through tables for what stands in some places, whoever put it there."""
    for (family, table), wanted in sorted(places.items()):
        filters = (("RTA_TABLE", table),)
        takes = partial(_stands_in, wanted, frozenset(length for length, *_ in wanted))
        try:
            told = where.read(ROUTES, filters, takes, family=family)
        except NetlinkError as error:
            if error.code not in GONE:
                raise
        else:
            yield (family, table), told


def _stands_in(places: set[Place], lengths: frozenset[int], route: bytes) -> bool:
    return route[HEADER.size + 1] in lengths and _place_of(route) in places


def _read_pods_routes(inside: Rtnetlink, keys: Iterable[Key]) -> tuple[Told, ...]:
    """Read ours, and what stands in the place of one that is not among them."""
    filters = (("RTA_TABLE", MAIN_TABLE),)
    places = _scope(keys)
    ours = []
    for number in AF.values():
        told = _routes_of(inside, filters, family=number, proto=PROTOCOL)
        places.get((number, MAIN_TABLE), set()).difference_update(map(_place_of, told))
        ours.append(told)
    missing = {where: wanted for where, wanted in places.items() if wanted}
    return (*ours, *(told for _, told in _in_places(inside, missing)))


def _learn_names(names: dict[int, str], routes: Iterable[Facts]) -> None:
    """Add the names of the links over which routes lead."""
    for index in {m.get("oif") for m in routes} - names.keys() - {None}:
        try:
            names[index] = socket.if_indextoname(index)
        except OSError:
            continue  # it is gone by now, and its routes are


def _observe_places(
    host: Rtnetlink, places: Iterable[KernelObject]
) -> tuple[set[KernelObject], Pairs]:
    objects: set[KernelObject] = set()
    pairs: Pairs = {}
    names: dict[int, str] = {}
    indices: dict[str, int] = {}
    places = [o for o in places if not getattr(o, "netns", "")]
    for name in {o.name for o in places if isinstance(o, Veth)}:
        message = _get(host, LINKS, (("IFLA_IFNAME", name),))
        if message is None or (link := decode_link(message, {name})) is None:
            continue
        names[message["index"]] = name
        indices[name] = message["index"]
        objects.add(link)
        if isinstance(link, Veth) and is_owned(link):
            pairs[message["index"], message.get("link")] = name
    for route in (o for o in places if isinstance(o, Route)):
        # The kernel has no other way to ask for one route: it tells which one a packet would take
        # (RTM_F_FIB_MATCH, Linux 4.13). With the rule to the pods' table gone it names another
        # one, and this one counts as missing until a full pass finds out why.
        message = _get(
            host,
            ROUTES,
            (("RTA_DST", str(route.destination.network_address)),),
            family=AF[family_name(route.destination.version)],
            dst_len=route.destination.prefixlen,
            flags=MATCH_FLAGS[route.destination.version],
        )
        found = message and decode_route(message, "", names)
        if found and found.key == route.key:
            objects.add(found)
    for neighbour in (o for o in places if isinstance(o, Neighbour) and o.device in indices):
        told = _read_neighbour(host, neighbour.address, indices[neighbour.device])
        objects |= decode_neighbours([decode_message(NEIGHBOURS, m) for m in told], "", names)
    return objects, pairs


def _get(host: Rtnetlink, table: Table, attributes: Attributes, **fields: int) -> Facts | None:
    """Read one entry; None if there is no such thing."""
    told = _read_one(host, table, attributes, GONE | UNREACHABLE, **fields)
    return decode_message(table, told[0]) if told else None


def _read_neighbour(where: Rtnetlink, address: IpAddress, link: int) -> Told:
    """Read a single neighbour, which is possible since Linux 5.0 (RTM_GETNEIGH, no dump)."""
    return _read_one(
        where,
        NEIGHBOURS,
        (("NDA_DST", str(address)),),
        GONE | {errno.EAFNOSUPPORT},  # a kernel without IPv6 has none
        family=AF[family_name(address.version)],
        ifindex=link,
    )


def _read_one(
    where: Rtnetlink, table: Table, attributes: Attributes, absent: set[int], **fields: int
) -> Told:
    """Read one entry; nothing if the kernel's answer is one of those that stand for absence."""
    try:
        return where.read_one(table, attributes, **fields)
    except NetlinkError as error:
        if error.code in absent:
            return ()
        raise


def _all_routes(where: Rtnetlink) -> Iterator[Facts]:
    for number in AF.values():
        yield from where.dump(ROUTES, family=number)


def _read_pod(inside: Rtnetlink, wanted: Inside) -> PodTables:
    """Ask for what is ours in a pod, and for nothing else: all the rest is up to the pod."""
    link = tuple(
        message
        for name in sorted(wanted.names)
        for message in _read_one(inside, LINKS, (("IFLA_IFNAME", name), *LINKS.asks), GONE)
    )
    if not link:  # nothing of ours can be without it, but what stands in the place of ours can
        return PodTables(routes=_read_pods_routes(inside, wanted.routes))
    indices = [index_of(message) for message in link]
    addresses = tuple(m for index in indices for m in _addresses_of(inside, index))
    needed = any(map(_may_have_route, addresses))
    return PodTables(
        link,
        _read_pods_routes(inside, wanted.routes),
        tuple(t for i in indices for t in _connected_of(inside, i)) if needed else (),
        addresses,
        # Asked for one by one: the kernel keeps all neighbours of all namespaces in one table,
        # and a dump in one of them goes through those of all (``neigh_dump_table``).
        tuple(
            told
            for index in indices
            for gateway in sorted(wanted.gateways, key=attrgetter("version"))
            for told in _read_neighbour(inside, gateway, index)
        ),
    )


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Translate whatever keeps us from reading."""
    try:
        yield
    except NetlinkError as error:
        raise ObserveError(what, os.strerror(error.code)) from error
    except OSError as error:
        raise ObserveError(what, str(error)) from error
