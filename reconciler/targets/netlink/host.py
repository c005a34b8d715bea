"""The host's objects: ours, and those in the place of a desired one."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial

from reconciler.core.datapath import MAIN_TABLE, PROTOCOL, IpAddress
from reconciler.core.remembered import Remembered
from reconciler.domains.address import LinkAddress
from reconciler.domains.link import EniLink, Veth, is_owned
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.engine.observed import Observed
from reconciler.errors import ObserveError
from reconciler.targets.netlink import entries, tables
from reconciler.targets.netlink.decode import (
    Connected,
    HostLinks,
    KernelObject,
    Pairs,
    decode_address,
    decode_link,
    decode_links,
    decode_neighbours,
    decode_route,
    decode_routes,
    decode_rule,
    find_connected,
)
from reconciler.targets.netlink.message import HEADER, reading
from reconciler.targets.netlink.rtnetlink import (
    GONE,
    NO_FAMILY,
    UNREACHABLE,
    Memory,
    Rtnetlink,
    Told,
)
from reconciler.targets.netlink.surplus import MAX_SURPLUS, MAX_SURPLUS_LINKS, Surplus
from reconciler.targets.netlink.tables import (
    AF,
    Attributes,
    Facts,
    Table,
    af_of,
    decode_message,
    value_of,
)

RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x1000, 0x2000

MATCH_FLAGS = {4: RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH, 6: RTM_F_FIB_MATCH}
"""By version: flags of the question which route a packet would take. IPv4's answer names the
route's table only with RTM_F_LOOKUP_TABLE. IPv6's always does, and refuses that flag with EINVAL
on a socket with strict checks (inet6_rtm_valid_getroute_req)."""

MALFORMED = (LookupError, ValueError, TypeError, OverflowError, struct.error)
"""What decoding an entry of an unexpected form raises."""


class Host:
    """Reads the host's objects. Tables that have not changed are not decoded again.

    Args:
        memory: what was decoded the last time.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._decode_links = Remembered(decode_links)
        self._decode_routes = Remembered(decode_routes)

    def observe(self, desired: Collection[KernelObject]) -> tuple[Observed, Pairs]:
        """Read the host's objects, and which host end belongs to which pod's end.

        A table that cannot be read fails alone, but for the links.

        Raises:
            ObserveError: the links could not be read.
        """
        with reading("the host's links"), Rtnetlink(self._memory) as host:
            seen, links = self._read_links(host, desired)
        for kind, what, read in (
            (LinkAddress, "the addresses of ENIs' links", _read_addresses),
            (Neighbour, "the host's neighbours", _read_neighbours),
            (Route, "the host's routes", self._read_routes),
            (Rule, "the host's rules", _read_rules),
        ):
            try:
                with reading(what), Rtnetlink(self._memory) as host:
                    seen = seen.with_these(read(host, desired, links.names))
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
        kinds = LinkAddress | Neighbour | Route
        names = veths | {o.name for o in enis}
        names |= {o.device for o in desired if isinstance(o, kinds) and not o.netns}
        raw = frozenset(name.encode() for name in names)
        macs = frozenset(bytes.fromhex(o.mac.replace(":", "")) for o in enis)
        surplus = Surplus(MAX_SURPLUS_LINKS, tables.index_of)

        def takes(link: bytes) -> bool:
            if (
                entries.name_of(link) in raw
                or value_of(tables.LINKS, link, "IFLA_ADDRESS") in macs
            ):
                return True
            return entries.may_be_ours(link) and surplus(link)

        messages = host.decode(tables.LINKS, host.read(tables.LINKS, takes=takes), "ours")
        links: HostLinks = self._decode_links(messages, veths)
        return surplus.among(Veth, links.objects.values()), links

    def _read_routes(
        self, host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
    ) -> Observed:
        """Read our routes, and what is in the place of a desired one that is missing.

        Of ours that are not desired, not more than ``MAX_SURPLUS``.
        """
        wanted = {o.key for o in desired if isinstance(o, Route) and not o.netns}
        surplus = Surplus(MAX_SURPLUS, entries.place_of, entries.places_of(wanted))
        told = host.read_all(tables.ROUTES, (), surplus, proto=PROTOCOL)
        known, messages = dict(names), host.decode(tables.ROUTES, told, "ours")
        learn_names(known, (m.get("oif") for m in messages))
        ours: frozenset[Route] = self._decode_routes(messages, known)
        told = in_places(host, entries.places_of(wanted - {r.key for r in ours}))
        others = host.decode(tables.ROUTES, told, "in the way")
        learn_names(known, (m.get("oif") for m in others))
        ours |= {r for r in decode_routes(others, known) if r.key in wanted}
        return surplus.among(Route, ours)


def observe_places(
    host: Rtnetlink, places: Iterable[KernelObject]
) -> tuple[set[KernelObject], Pairs]:
    """Read what is in the host's places of some pods' objects; nothing is dumped."""
    objects: set[KernelObject] = set()
    pairs: Pairs = {}
    names: dict[int, str] = {}
    places = [o for o in places if not getattr(o, "netns", "")]
    for name in {o.name for o in places if isinstance(o, Veth)}:
        message = get(host, tables.LINKS, (("IFLA_IFNAME", name),))
        if message is None or (link := decode_link(message, {name})) is None:
            continue
        names[message["index"]] = name
        objects.add(link)
        if isinstance(link, Veth) and is_owned(link):
            pairs[message["index"], message.get("link")] = name
    for route in (o for o in places if isinstance(o, Route)):
        # The kernel has no other way to ask for one route: it tells which one a packet would take
        # (RTM_F_FIB_MATCH, Linux 4.13). With the rule to the pods' table gone it names another
        # one, and this one counts as missing until a full pass finds out why.
        message = get(
            host,
            tables.ROUTES,
            (("RTA_DST", str(route.destination.network_address)),),
            family=af_of(route.destination),
            dst_len=route.destination.prefixlen,
            flags=MATCH_FLAGS[route.destination.version],
        )
        found = message and decode_route(message, "", names)
        if found and found.key == route.key:
            objects.add(found)
    return objects | _read_neighbours(host, places, names), pairs


def get(host: Rtnetlink, table: Table, attributes: Attributes, **fields: int) -> Facts | None:
    """Read one entry; None if there is no such thing."""
    told = host.read_one(table, attributes, GONE | UNREACHABLE, **fields)
    return decode_message(table, told[0]) if told else None


def _read_rules(
    host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
) -> Observed:
    """Read ours; of those that are not desired, not more than ``MAX_SURPLUS``."""
    del names
    wanted = {
        (
            AF[o.family],
            o.priority,
            o.table,
            o.mark or 0,
            o.source.network_address.packed if o.source else b"",
        )
        for o in desired
        if isinstance(o, Rule)
    }
    surplus = Surplus(MAX_SURPLUS, entries.rule_place_of, wanted)
    told = host.read_all(tables.RULES, (), lambda rule: entries.is_stamped(rule) and surplus(rule))
    messages = host.decode(tables.RULES, told, "ours")
    rules = {
        replace(decode_rule(message), told=content[HEADER.size :])
        for content, message in zip(told, messages, strict=True)
    }
    return surplus.among(Rule, rules)


def _read_neighbours(
    host: Rtnetlink, desired: Iterable[KernelObject], names: dict[int, str]
) -> set[KernelObject]:
    """Ask for them one by one: there may be any number of others."""
    indices = {name: index for index, name in names.items()}
    told = [
        message
        for o in desired
        if isinstance(o, Neighbour) and not o.netns and o.device in indices
        for message in read_neighbour(host, o.address, indices[o.device])
    ]
    return decode_neighbours(host.decode(tables.NEIGHBOURS, tuple(told)), "", names)


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
        takes = partial(_is_one_of, wanted[name])
        told = host.read_all(tables.ADDRESSES, (), takes, index=index)
        connected: Connected = set()
        if any(map(entries.may_have_route, told)):
            routes = connected_of(host, index, wanted[name])
            connected = find_connected(
                decode_route(decode_message(tables.ROUTES, m), "", names) for m in routes
            )
        objects |= {
            decode_address(m, "", names, connected)
            for m in host.decode(tables.ADDRESSES, told, index)
        }
    return objects


def _is_one_of(wanted: Collection[bytes], address: bytes) -> bool:
    return entries.own_address(address) in wanted


def connected_of(where: Rtnetlink, link: int, addresses: Collection[bytes] = ()) -> Told:
    """Read the routes that the kernel has made by itself for a link's addresses.

    Args:
        where: it is.
        link: its index.
        addresses: all that matter; every one, if none are named.
    """

    def leads_to_one(route: bytes) -> bool:
        network = entries.network_of(route)
        size, mask = network.max_prefixlen // 8, int(network.netmask)
        first = int(network.network_address)
        return any(len(a) == size and int.from_bytes(a, "big") & mask == first for a in addresses)

    filters = (("RTA_TABLE", MAIN_TABLE), ("RTA_OIF", link))
    takes = leads_to_one if addresses else None
    return where.read_all(
        tables.ROUTES, filters, takes, proto=tables.RTPROT_KERNEL, type=tables.RTN_UNICAST
    )


def in_places(where: Rtnetlink, places: Iterable[entries.Place]) -> Told:
    """Go through tables for what is in some places, whoever put it there."""
    by_table: dict[tuple[int, int], set[entries.Place]] = {}
    for place in places:
        by_table.setdefault(place[:2], set()).add(place)
    return tuple(
        message
        for (family, table), wanted in sorted(by_table.items())
        for message in where.read(
            tables.ROUTES,
            (("RTA_TABLE", table),),
            partial(_is_in, wanted, frozenset(length for _, _, length, *_ in wanted)),
            GONE,
            family=family,
        )
    )


def _is_in(places: set[entries.Place], lengths: frozenset[int], route: bytes) -> bool:
    return route[HEADER.size + 1] in lengths and entries.place_of(route) in places


def read_neighbour(where: Rtnetlink, address: IpAddress, link: int) -> Told:
    """Read a single neighbour, which is possible since Linux 5.0 (RTM_GETNEIGH, no dump)."""
    return where.read_one(
        tables.NEIGHBOURS,
        (("NDA_DST", str(address)),),
        GONE | NO_FAMILY,
        family=af_of(address),
        ifindex=link,
    )


def learn_names(names: dict[int, str], indices: Iterable[int | None]) -> None:
    """Add the names of links."""
    for index in {i for i in indices if i is not None} - names.keys():
        try:
            names[index] = socket.if_indextoname(index)
        except OSError:
            continue  # it is gone by now, and its routes are
