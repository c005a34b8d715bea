"""The kernel's network objects through rtnetlink: what is there.

Sockets are opened and closed within each call, so that they never leave their thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from operator import attrgetter
from typing import Any, NamedTuple

from pyroute2.netlink.exceptions import NetlinkError

from reconciler.core.datapath import (
    FAMILIES,
    PODS_TABLE,
    PROTOCOL,
    IpAddress,
)
from reconciler.core.inputs import Links
from reconciler.core.lookup import Found, Packet
from reconciler.core.plan import Change, Verb
from reconciler.core.remembered import Remembered
from reconciler.domains.foreign import ForeignRule
from reconciler.domains.link import EniLink, PodLink, Veth, is_owned
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.errors import ApplyError, NamespaceError, ObserveError
from reconciler.targets.namespaces import entered
from reconciler.targets.netlink_decode import (
    RTPROT_KERNEL,
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
from reconciler.targets.netlink_write import (
    KernelObject,
    Sessions,
    apply_one,
)
from reconciler.targets.rtnetlink import (
    ADDRESSES,
    AF,
    LINKS,
    NEIGHBOURS,
    ROUTES,
    RULES,
    Attributes,
    Facts,
    Memory,
    Rtnetlink,
    Table,
    Told,
    decode_message,
    index_of,
)

RTM_F_LOOKUP_TABLE = 0x1000
RTM_F_FIB_MATCH = 0x2000
LOOPBACK_INDEX = 1
"""In each namespace (LOOPBACK_IFINDEX, net/flow.h)."""

GONE = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL}
"""What the kernel answers when a thing to delete does not exist: the wish is fulfilled."""

UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}
"""What it answers when it is asked for a route and has none, or one that says no."""


class Fib(NamedTuple):
    """Everything the host's lookups go by, other owners' objects included."""

    rules: frozenset[Rule]
    routes: frozenset[Route]
    addresses: frozenset[IpAddress]


class HostTables(NamedTuple):
    """What the host's tables say; rules with their family."""

    links: list[Facts]
    routes: list[Facts]
    addresses: list[Facts]
    neighbours: list[Facts]
    rules: list[tuple[Facts, str]]


class SeenPod(NamedTuple):
    """What was made of a pod's tables."""

    digest: bytes
    ends: Ends
    objects: frozenset[KernelObject]


class Netlink:
    """Links, addresses, neighbours, routes and rules of this namespace and of pods'.

    What says the same as at the last look is not made into objects again.
    """

    def __init__(self) -> None:
        self._memory: Memory = {}
        self._pods_memory: Memory = {}
        """One for all: what it saves is above all the loopback link, which all have alike."""
        self._tell_apart = Remembered(tell_apart)
        self._decode_links = Remembered(decode_links)
        self._decode_routes = Remembered(decode_routes)
        self._decode_neighbours = Remembered(decode_neighbours)
        self._seen_pods: dict[str, SeenPod] = {}

    def _host(self) -> Rtnetlink:
        return Rtnetlink(self._memory)

    def links(self) -> Links:
        """Tell ENIs' links from pods'.

        Raises:
            ObserveError: the kernel could not be read.
        """
        with _reading("links"), self._host() as host:
            messages = host.dump(LINKS)
        links: Links = self._tell_apart(messages)
        return links

    def foreign_rules(self) -> tuple[ForeignRule, ...]:
        """Return the ``ip rule``s of other owners, the kernel's own three left out.

        Raises:
            ObserveError: the kernel could not be read.
        """
        found: list[ForeignRule] = []
        with _reading("other owners' rules"), self._host() as host:
            for family in FAMILIES.values():
                found += [
                    decode_foreign_rule(message, family.name)
                    for message in host.dump(RULES, family=AF[family.name])
                    if message.get("protocol") not in (PROTOCOL, RTPROT_KERNEL)
                ]
        return tuple(found)

    def pod_addresses(self) -> dict[str, tuple[IpAddress, ...]]:
        """Where the pods' table leads: addresses by the host end of a pod's link, IPv4 first.

        Raises:
            ObserveError: the kernel could not be read.
        """
        with _reading("the pods' routes"), self._host() as host:
            names = {m["index"]: m.get("ifname") for m in host.dump(LINKS)}
            routes = [decode_route(m, "", names) for m in _all_routes(host)]
        ours = [r for r in routes if r and r.table == PODS_TABLE and r.protocol == PROTOCOL]
        found: dict[str, tuple[IpAddress, ...]] = {}
        for route in sorted(ours, key=lambda r: r.key):
            held = found.get(route.device, ())
            found[route.device] = (*held, route.destination.network_address)
        return found

    def fib(self) -> Fib:
        """Read every rule, unicast route and address of the host.

        Raises:
            ObserveError: the kernel could not be read.
        """
        with _reading("the host's rules, routes and addresses"), self._host() as host:
            names = {m["index"]: m.get("ifname") for m in host.dump(LINKS)}
            rules = {decode_rule(m, family) for m, family in _all_rules(host)}
            routes = [decode_route(m, "", names) for m in _all_routes(host)]
            connected = find_connected(routes)
            addresses = [decode_address(m, "", names, connected) for m in host.dump(ADDRESSES)]
        return Fib(
            frozenset(rules),
            frozenset(r for r in routes if r),
            frozenset(a.address for a in addresses),
        )

    def look_up(self, packet: Packet) -> Found:
        """Ask the kernel where a packet would go, as ``ip route get`` does.

        Raises:
            ObserveError: it could not be asked.
        """
        from pyroute2.iproute import IPRoute  # with an event loop, for who traces only

        family = AF[family_name(packet.destination.version)]
        words: dict[str, Any] = {"dst": str(packet.destination), "mark": packet.mark}
        if packet.source is not None:
            words["src"] = str(packet.source)
        with _reading(f"the answer to '{packet.command}'"), IPRoute() as ip:
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

    def observe(self, desired: Iterable[KernelObject]) -> frozenset[KernelObject]:
        """Read the host's objects, and those of every pod namespace a desired object lives in.

        Of other owners' routes only those in the place of a desired one are shown, and of a pod's
        neighbours only those of desired addresses.

        Raises:
            NamespaceError: a pod's namespace is gone, or could not be read.
            ObserveError: the kernel could not be read.
        """
        desired = list(desired)
        veths = {o.name for o in desired if isinstance(o, Veth)}
        places = {o.key for o in desired if isinstance(o, Route)}
        pods = {o.pod_netns for o in desired if isinstance(o, Veth)}
        self._seen_pods = {path: seen for path, seen in self._seen_pods.items() if path in pods}
        with _reading("the host's links, addresses, routes and rules"), self._host() as host:
            tables = _read_host(host)
        links: HostLinks = self._decode_links(tables.links, veths)
        routes, connected = self._decode_routes(tables.routes, links.names, places)
        objects: set[KernelObject] = set(links.objects.values())
        objects |= routes
        objects |= self._decode_neighbours(tables.neighbours, "", links.names)
        objects |= {
            decode_address(m, "", links.names, connected)
            for m in tables.addresses
            if isinstance(links.objects.get(m["index"]), EniLink)
        }
        objects |= {
            decode_rule(m, family) for m, family in tables.rules if m.get("protocol") == PROTOCOL
        }
        return frozenset(objects | self._observe_pods(desired, links.pairs))

    def observe_at(self, places: Iterable[KernelObject]) -> frozenset[KernelObject]:
        """Read what stands in the places of these objects of pods, and their namespaces.

        Of the host nothing is dumped, so the cost does not grow with other pods.

        Raises:
            NamespaceError: a pod's namespace is gone, or could not be read.
            ObserveError: the kernel could not be read.
        """
        places = list(places)
        with _reading("links and routes of single pods"), self._host() as host:
            objects, pairs = _observe_places(host, places)
        return frozenset(objects | self._observe_pods(places, pairs))

    def _observe_pods(self, desired: Iterable[KernelObject], pairs: Pairs) -> set[KernelObject]:
        gateways: dict[str, set[IpAddress]] = {}
        for o in desired:
            if isinstance(o, PodLink):
                gateways.setdefault(o.netns, set())
            elif isinstance(o, Neighbour):
                gateways.setdefault(o.netns, set()).add(o.address)
        gateways.pop("", None)
        objects: set[KernelObject] = set()
        for path in sorted(gateways):
            try:
                with self._inside(path) as inside:
                    tables = _read_pod(inside, sorted(gateways[path], key=attrgetter("version")))
                    objects |= self._recognise(inside, tables, path, pairs)
            except (NetlinkError, OSError, KeyError, ValueError) as error:
                # Whoever owns the pod may change it while we read: an entry without its link.
                raise NamespaceError(path, str(error)) from error
        return objects

    def _recognise(
        self, inside: Rtnetlink, tables: PodTables, path: str, pairs: Pairs
    ) -> frozenset[KernelObject]:
        digest, seen = tables.digest, self._seen_pods.get(path)
        if (
            seen is None
            or seen.digest != digest
            or any(pairs.get(end, "") != veth for end, veth in seen.ends)
        ):
            ends, objects = decode_pod(inside, tables, path, pairs)
            seen = self._seen_pods[path] = SeenPod(digest, ends, objects)
        return seen.objects

    def _inside(self, identity: str) -> Rtnetlink:
        """Open a socket in a pod's namespace; the thread is back home afterwards.

        Raises:
            FileNotFoundError: there is no such namespace.
        """
        with entered(identity):
            return Rtnetlink(self._pods_memory)

    def apply(self, actions: Sequence[Change[KernelObject]]) -> tuple[ApplyError, ...]:
        """Carry out actions in order, each namespace entered once; return what failed."""
        failures: list[ApplyError] = []
        with Sessions() as sessions:
            for action in actions:
                try:
                    apply_one(sessions, action)
                except NetlinkError as error:
                    if action.verb is Verb.DELETE and error.code in GONE:
                        continue
                    why = os.strerror(error.code)
                    failures.append(ApplyError.from_errno(str(action), error.code, why, error))
                except OSError as error:
                    number = error.errno or 0
                    failures.append(ApplyError.from_errno(str(action), number, str(error), error))
        return tuple(failures)


def _read_host(host: Rtnetlink) -> HostTables:
    return HostTables(
        links=host.dump(LINKS),
        routes=list(_all_routes(host)),
        addresses=host.dump(ADDRESSES),
        neighbours=host.dump(NEIGHBOURS),
        rules=list(_all_rules(host)),
    )


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
        # one, and this one counts as missing until a look at everything finds out why.
        message = _get(
            host,
            ROUTES,
            (("RTA_DST", str(route.destination.network_address)),),
            family=AF[family_name(route.destination.version)],
            dst_len=route.destination.prefixlen,
            flags=RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH,
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


def _all_rules(host: Rtnetlink) -> Iterator[tuple[Facts, str]]:
    for name in FAMILIES:
        for message in host.dump(RULES, family=AF[name]):
            yield message, name


def _all_routes(where: Rtnetlink) -> Iterator[Facts]:
    for number in AF.values():
        yield from where.dump(ROUTES, family=number)


def _read_pod(inside: Rtnetlink, gateways: Iterable[IpAddress]) -> PodTables:
    links = inside.read(LINKS)
    if len(links) <= 1:  # the loopback link: nothing of what we look for can be without another
        return PodTables((), (), (), ())
    routes = tuple(inside.read(ROUTES, family=number) for number in AF.values())
    # Asked for one by one: the kernel keeps all neighbours of all namespaces in one table, and a
    # dump in one of them goes through those of all (``neigh_dump_table``).
    neighbours = tuple(
        told
        for link in links
        if index_of(link) != LOOPBACK_INDEX
        for gateway in gateways
        for told in _read_neighbour(inside, gateway, index_of(link))
    )
    return PodTables(links, routes, inside.read(ADDRESSES), neighbours)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Translate whatever keeps us from reading."""
    try:
        yield
    except NetlinkError as error:
        raise ObserveError(what, os.strerror(error.code)) from error
    except OSError as error:
        raise ObserveError(what, str(error)) from error
