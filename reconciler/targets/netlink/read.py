"""Reading objects: the host's, ours and those in the place of a desired one; and pods'.

What others may add has limits: desired objects are read, and the first ones of all others.
Everything else in a pod's namespace is the pod's (decision 21).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter

from reconciler.core.datapath import MAIN_TABLE, PROTOCOL, IpAddress
from reconciler.core.remembered import Remembered
from reconciler.domains.address import LinkAddress
from reconciler.domains.link import EniLink, PodLink, Veth, is_owned
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.engine.converge import Observed
from reconciler.engine.plan import Key
from reconciler.errors import NamespaceError, ObserveError
from reconciler.targets.netlink import decode, entries, rtnetlink, tables
from reconciler.targets.netlink.decode import HostLinks, KernelObject, Pairs, PodTables
from reconciler.targets.netlink.message import native, reading
from reconciler.targets.netlink.namespaces import entered
from reconciler.targets.netlink.rtnetlink import GONE, NO_FAMILY, Rtnetlink, Told
from reconciler.targets.netlink.tables import ADDRESSES, LINKS, NEIGHBOURS, ROUTES, RULES, value_of

MAX_SURPLUS = 200
"""Routes, and rules, that carry our protocol number and that nothing desires, in one look. They
are removed, so the next observation shows the next ones. If another program adds 80,000, reading
all of them would exhaust the daemon's memory, again after each restart; and pods would wait while
they are removed. With 1,000 of each the interpreter kept 4 MiB for good; with 200 it keeps 2."""

MAX_SURPLUS_LINKS = 8
"""The same of links: to delete a pair takes the kernel some 10 ms."""

RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x1000, 0x2000

MATCH_FLAGS = {4: RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH, 6: RTM_F_FIB_MATCH}
"""By version: flags of the question which route a packet would take. IPv4's answer names the
route's table only with RTM_F_LOOKUP_TABLE. IPv6's always does, and refuses that flag with EINVAL
on a socket with strict checks (inet6_rtm_valid_getroute_req)."""

MALFORMED = (LookupError, ValueError, TypeError, OverflowError, struct.error)
"""What decoding an entry of an unexpected form raises."""


# -- the host


class Host:
    """Reads the host's objects; those of tables that have not changed are not made anew."""

    def __init__(self) -> None:
        self._decode_links = Remembered(decode.decode_links)
        self._decode_neighbours = Remembered(decode.decode_host_neighbours)
        self._decode_routes = Remembered(decode.decode_host_routes)
        self._decode_rules = Remembered(_decode_rules)

    def observe(self, desired: Collection[KernelObject]) -> tuple[Observed, Pairs]:
        """Read the host's objects, and which host end belongs to which pod's end.

        A table that cannot be read fails alone, but for the links.

        Raises:
            ObserveError: the links could not be read.
        """
        wanted = [o for o in desired if not getattr(o, "netns", "")]
        with reading("the host's links"), Rtnetlink() as host:
            seen, links = self._read_links(host, wanted)
        for kind, what, read in (
            (LinkAddress, "the addresses of ENIs' links", _read_addresses),
            (Neighbour, "the host's neighbours", self._read_neighbours),
            (Route, "the host's routes", self._read_routes),
            (Rule, "the host's rules", self._read_rules),
        ):
            try:
                with reading(what), Rtnetlink() as host:
                    seen = seen.with_these(read(host, wanted, links.names))
            except ObserveError as error:
                seen = seen.with_these(Observed(unread_kinds={kind: error}))
            except MALFORMED as error:
                unread = ObserveError(what, f"{type(error).__name__}: {error}")
                unread.__cause__ = error
                seen = seen.with_these(Observed(unread_kinds={kind: unread}))
        return seen, links.pairs

    def _read_links(
        self, host: Rtnetlink, desired: Iterable[KernelObject]
    ) -> tuple[Observed, HostLinks]:
        """Read desired links, those that desired objects are on, and the first of our others."""
        veths = {o.name for o in desired if isinstance(o, Veth)}
        enis = [o for o in desired if isinstance(o, EniLink)]
        names = veths | {o.name for o in enis}
        names |= {o.device for o in desired if isinstance(o, LinkAddress | Neighbour | Route)}
        raw = frozenset(name.encode() for name in names)
        macs = frozenset(bytes.fromhex(o.mac.replace(":", "")) for o in enis)
        surplus = entries.Surplus(MAX_SURPLUS_LINKS, tables.index_of)

        def takes(link: bytes) -> bool:
            if entries.name_of(link) in raw or value_of(LINKS, link, "IFLA_ADDRESS") in macs:
                return True
            return entries.may_be_ours(link) and surplus(link)

        links = self._decode_links(host.read(LINKS, takes=takes), veths)
        return surplus.among(Veth, links.objects.values()), links

    def _read_routes(
        self, host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
    ) -> Observed:
        """Read our routes, and what is in the place of a desired one that is missing.

        Of ours that are not desired, not more than ``MAX_SURPLUS``.
        """
        wanted = {o.key for o in desired if isinstance(o, Route)}
        surplus = entries.Surplus(MAX_SURPLUS, entries.place_of, entries.places_of(wanted))
        told, known = host.read_all(ROUTES, (), surplus, proto=PROTOCOL), dict(names)
        learn_names(known, map(_way_of, told))
        ours = self._decode_routes(told, known)
        others = in_places(host, entries.places_of(wanted - {r.key for r in ours}))
        learn_names(known, map(_way_of, others))
        ours |= {r for r in decode.decode_routes(others, known) if r.key in wanted}
        return surplus.among(Route, ours)

    def _read_neighbours(
        self, host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
    ) -> frozenset[Neighbour]:
        return self._decode_neighbours(_ask_for_neighbours(host, desired, names), names)

    def _read_rules(
        self, host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
    ) -> Observed:
        """Read ours; of those that are not desired, not more than ``MAX_SURPLUS``."""
        del names
        wanted = set()
        for o in desired:
            if isinstance(o, Rule):
                source = o.source.network_address.packed if o.source else b""
                wanted.add((tables.AF[o.family], o.priority, o.table, o.mark or 0, source))
        surplus = entries.Surplus(MAX_SURPLUS, entries.rule_place_of, wanted)
        told = host.read_all(RULES, (), lambda rule: entries.is_stamped(rule) and surplus(rule))
        return surplus.among(Rule, self._decode_rules(told))


def observe_places(
    host: Rtnetlink, places: Iterable[KernelObject]
) -> tuple[set[KernelObject], Pairs]:
    """Read what is in the host's places of some pods' objects; nothing is dumped."""
    objects: set[KernelObject] = set()
    pairs: Pairs = {}
    names: dict[int, str] = {}
    places = [o for o in places if not getattr(o, "netns", "")]
    for name in {o.name for o in places if isinstance(o, Veth)}:
        facts = host.get(LINKS, (("IFLA_IFNAME", name),))
        if facts is None or (link := decode.decode_link(facts, {name})) is None:
            continue
        names[facts["index"]] = name
        objects.add(link)
        if isinstance(link, Veth) and is_owned(link):
            pairs[facts["index"], facts.get("link")] = name
    for route in (o for o in places if isinstance(o, Route)):
        # The kernel has no other way to ask for one route: it tells which one a packet would take
        # (RTM_F_FIB_MATCH, Linux 4.13). With the rule to the pods' table gone it names another
        # one, and this one counts as missing until a full pass finds out why.
        facts = host.get(
            ROUTES,
            (("RTA_DST", str(route.destination.network_address)),),
            family=tables.af_of(route.destination),
            dst_len=route.destination.prefixlen,
            flags=MATCH_FLAGS[route.destination.version],
        )
        found = facts and decode.decode_route(facts, "", names)
        if found and found.key == route.key:
            objects.add(found)
    told = _ask_for_neighbours(host, places, names)
    return objects | decode.decode_neighbours(told, "", names), pairs


def _decode_rules(told: Told) -> frozenset[Rule]:
    return frozenset(
        replace(decode.decode_rule(tables.decode_entry(RULES, rule)), told=rule) for rule in told
    )


def _ask_for_neighbours(
    host: Rtnetlink, desired: Iterable[KernelObject], names: Mapping[int, str]
) -> Told:
    """Ask for them one by one: there may be any number of others."""
    indices = {name: index for index, name in names.items()}
    return tuple(
        entry
        for o in desired
        if isinstance(o, Neighbour) and o.device in indices
        for entry in _read_neighbour(host, o.address, indices[o.device])
    )


def _read_addresses(
    host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
) -> set[LinkAddress]:
    """Read the desired ones, whatever else others have put on those links."""
    wanted: dict[str, set[bytes]] = {}
    for o in desired:
        if isinstance(o, LinkAddress):
            wanted.setdefault(o.device, set()).add(o.address.packed)
    objects: set[LinkAddress] = set()
    for index, name in names.items():
        if packed := wanted.get(name):
            takes = partial(_is_one_of, packed)
            told = host.read_all(ADDRESSES, (), takes, index=index)
            routes = _connected_of(host, [index], told, packed)
            connected = decode.find_connected(decode.decode_routes(routes, names))
            objects |= decode.decode_addresses(told, "", names, connected)
    return objects


def _is_one_of(wanted: Collection[bytes], address: bytes) -> bool:
    return entries.own_address(address) in wanted


def _connected_of(
    where: Rtnetlink, links: Iterable[int], addresses: Told, wanted: Collection[bytes] = ()
) -> Told:
    """Read the routes that the kernel has made by itself for addresses of some links.

    If ``wanted`` names own addresses, only those to their networks.
    """
    if not any(map(entries.may_have_route, addresses)):
        return ()

    def leads_to_one(route: bytes) -> bool:
        network = entries.network_of(route)
        size, mask = network.max_prefixlen // 8, int(network.netmask)
        first = int(network.network_address)
        return any(len(a) == size and int.from_bytes(a, "big") & mask == first for a in wanted)

    takes, kind = leads_to_one if wanted else None, tables.RTN_UNICAST
    filters = [(("RTA_TABLE", MAIN_TABLE), ("RTA_OIF", link)) for link in links]
    return tuple(
        route
        for by in filters
        for route in where.read_all(ROUTES, by, takes, proto=tables.RTPROT_KERNEL, type=kind)
    )


def in_places(where: Rtnetlink, places: Iterable[entries.Place]) -> Told:
    """Go through tables for what is in some places, whoever put it there."""
    by_table: dict[tuple[int, int], set[entries.Place]] = {}
    for place in places:
        by_table.setdefault(place[:2], set()).add(place)
    found: list[bytes] = []
    for (family, table), wanted in sorted(by_table.items()):
        takes = partial(_is_in, wanted, frozenset(length for _, _, length, *_ in wanted))
        found += where.read(ROUTES, (("RTA_TABLE", table),), takes, GONE, family=family)
    return tuple(found)


def _is_in(places: set[entries.Place], lengths: frozenset[int], route: bytes) -> bool:
    return route[1] in lengths and entries.place_of(route) in places  # ``struct rtmsg``


def _read_neighbour(where: Rtnetlink, address: IpAddress, link: int) -> Told:
    """Read a single neighbour, which is possible since Linux 5.0 (RTM_GETNEIGH, no dump).

    The kernel keeps all neighbours of all namespaces in one table, and a dump in one of them goes
    through those of all (``neigh_dump_table``).
    """
    wanted, absent = (("NDA_DST", str(address)),), GONE | NO_FAMILY
    return where.read_one(NEIGHBOURS, wanted, absent, family=tables.af_of(address), ifindex=link)


def _way_of(route: bytes) -> int:
    return native(value_of(ROUTES, route, "RTA_OIF"))


def _ends_of(link: bytes) -> tuple[int, int]:
    """Return the other end's index, which each end names, and a link's own."""
    return native(value_of(LINKS, link, "IFLA_LINK")), tables.index_of(link)


def name_of(index: int) -> str:
    """Name a link of this thread's namespace; "" if there is none."""
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):
        return ""


def learn_names(names: dict[int, str], indices: Iterable[int]) -> None:
    """Add the names of links; 0 is none."""
    for index in set(indices) - names.keys() - {0}:
        try:
            names[index] = socket.if_indextoname(index)
        except OSError:
            continue  # it is gone by now, and its routes are


# -- pods


@dataclass
class _Inside:
    """Wanted in a pod's namespace: names of links (one, but for a moment), gateways, routes."""

    names: set[str] = field(default_factory=set)
    gateways: set[IpAddress] = field(default_factory=set)
    routes: set[Key] = field(default_factory=set)


class Pods:
    """Reads pods' namespaces; objects of tables that have not changed are not made anew."""

    def __init__(self) -> None:
        self._decode: dict[
            str, Remembered[[PodTables, str, tuple[str, ...]], frozenset[KernelObject]]
        ] = {}

    def forget_all_but(self, paths: Collection[str]) -> None:
        """Forget the pods that are not on the node any more."""
        self._decode = {path: pod for path, pod in self._decode.items() if path in paths}

    def observe(self, desired: Iterable[KernelObject], pairs: Pairs) -> Observed:
        """Read every namespace that a desired object is in.

        Raises nothing: each namespace that cannot be read is named in the answer.
        """
        objects: set[KernelObject] = set()
        unread: dict[str, NamespaceError] = {}
        for path, wanted in sorted(_by_namespace(desired).items()):
            try:
                with entered(path):
                    inside = Rtnetlink(rtnetlink.POD_BOUNDS)
                with inside:
                    told = _read_pod(inside, wanted)
                veths = tuple(pairs.get(_ends_of(link), "") for link in told.link)
                pod = self._decode.setdefault(path, Remembered(decode.decode_pod))
                objects |= pod(told, path, veths)
            except (ObserveError, OSError, *MALFORMED) as error:
                # The pod may have anything in there, and may change it while we read.
                why = error.why if isinstance(error, ObserveError) else str(error)
                what = f"its {error.what}: " if isinstance(error, ObserveError) else ""
                unread[path] = NamespaceError(path, f"{what}{why or type(error).__name__}")
                unread[path].__cause__ = error
        return Observed(objects, unread_places=unread)


def _by_namespace(desired: Iterable[KernelObject]) -> dict[str, _Inside]:
    wanted: dict[str, _Inside] = {}
    for o in desired:
        if not (path := getattr(o, "netns", "")):
            continue
        inside = wanted.setdefault(path, _Inside())
        match o:
            case PodLink():
                inside.names.add(o.name)
            case Neighbour():
                inside.gateways.add(o.address)
            case Route():
                inside.routes.add(o.key)
            case _:
                pass
    return wanted


def _read_pod(inside: Rtnetlink, wanted: _Inside) -> PodTables:
    link = tuple(
        entry
        for name in sorted(wanted.names)
        for entry in inside.read_one(LINKS, (("IFLA_IFNAME", name), *LINKS.asks))
    )
    routes = inside.read_all(ROUTES, (("RTA_TABLE", MAIN_TABLE),), proto=PROTOCOL)
    routes += in_places(
        inside, entries.places_of(wanted.routes) - set(map(entries.place_of, routes))
    )
    if not link:  # nothing of ours can be without it, but what is in the place of ours can
        return PodTables(routes=routes)
    indices = [tables.index_of(entry) for entry in link]
    addresses = tuple(a for index in indices for a in inside.read_all(ADDRESSES, index=index))
    neighbours = tuple(
        entry
        for index in indices
        for gateway in sorted(wanted.gateways, key=attrgetter("version"))
        for entry in _read_neighbour(inside, gateway, index)
    )
    connected = _connected_of(inside, indices, addresses)
    return PodTables(link, routes, connected, addresses, neighbours)
