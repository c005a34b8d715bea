"""The kernel's network objects through rtnetlink: what is there.

Sockets are opened and closed within each call, so that they never leave their thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from pyroute2.netlink.exceptions import NetlinkError

from reconciler.core.attachment import AttachmentKey, alias_key
from reconciler.core.datapath import (
    ALIAS,
    FAMILIES,
    MAIN_TABLE,
    PODS_TABLE,
    PROTOCOL,
    IpAddress,
    IpNetwork,
)
from reconciler.core.inputs import Links
from reconciler.core.lookup import Found, Packet
from reconciler.core.plan import Change, Verb
from reconciler.core.remembered import Remembered
from reconciler.domains.address import LinkAddress
from reconciler.domains.foreign import ForeignRule
from reconciler.domains.link import EniLink, Link, PodLink, Veth, is_owned, is_unfinished
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.errors import ApplyError, NamespaceError, ObserveError
from reconciler.targets.namespaces import entered
from reconciler.targets.netlink_write import (
    FR_ACT_TO_TBL,
    IFA_F_NOPREFIXROUTE,
    IFF_UP,
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
    RTN_UNICAST,
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

Pairs = dict[tuple[int | None, int | None], str]
"""Name of each host veth of ours by (its index, its pod end's index)."""

Connected = set[tuple[str, IpNetwork]]
"""Networks that the kernel has made a route for by itself, with the device."""

RTPROT_KERNEL = 2
RTM_F_LOOKUP_TABLE = 0x1000
RTM_F_FIB_MATCH = 0x2000
ARPHRD_ETHER = 1
LOOPBACK_INDEX = 1
"""In each namespace (LOOPBACK_IFINDEX, net/flow.h)."""

GONE = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL}
"""What the kernel answers when a thing to delete does not exist: the wish is fulfilled."""

UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}
"""What it answers when it is asked for a route and has none, or one that says no."""

STACKED = {"bond", "bridge", "ipvlan", "macvlan", "vlan"}
"""Links that copy the MAC of an interface below them, and so are not the ENI."""

NOTHING = 0xFFFFFFFF
FIB_RULE_INVERT = 0x2

KNOWN_RULE_FIELDS = {
    "FRA_TABLE",
    "FRA_PRIORITY",
    "FRA_PROTOCOL",
    "FRA_FWMARK",
    "FRA_FWMASK",
    "FRA_SRC",
    "FRA_SUPPRESS_PREFIXLEN",
}


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


class HostLinks(NamedTuple):
    """What was made of the host's links.

    Attributes:
        names: by index.
        objects: those that are ENIs' or pods', by index.
        pairs: host ends of ours, by their own index and their pod's.
    """

    names: dict[int, str]
    objects: dict[int, Link]
    pairs: Pairs


class PodTables(NamedTuple):
    """What a pod's tables say, not decoded; routes by family."""

    links: Told
    routes: tuple[Told, ...]
    addresses: Told
    neighbours: Told

    @property
    def digest(self) -> bytes:
        """Sixteen bytes that are others when anything is."""
        found = blake2b(digest_size=16)
        for told in (self.links, *self.routes, self.addresses, self.neighbours):
            for message in told:  # each begins with its length and kind
                found.update(message)
        return found.digest()


Ends = tuple[tuple[tuple[int | None, int | None], str], ...]
"""What was taken for the other end of each link of a pod."""


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
        self._tell_apart = Remembered(_tell_apart)
        self._decode_links = Remembered(_decode_links)
        self._decode_routes = Remembered(_decode_routes)
        self._decode_neighbours = Remembered(_decode_neighbours)
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
                    _decode_foreign_rule(message, family.name)
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
            routes = [_decode_route(m, "", names) for m in _all_routes(host)]
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
            rules = {_decode_rule(m, family) for m, family in _all_rules(host)}
            routes = [_decode_route(m, "", names) for m in _all_routes(host)]
            connected = _connected(routes)
            addresses = [_decode_address(m, "", names, connected) for m in host.dump(ADDRESSES)]
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

        family = AF[_family_name(packet.destination.version)]
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

        Of other owners' routes only those in the place of a desired one are shown.

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
            _decode_address(m, "", links.names, connected)
            for m in tables.addresses
            if isinstance(links.objects.get(m["index"]), EniLink)
        }
        objects |= {
            _decode_rule(m, family) for m, family in tables.rules if m.get("protocol") == PROTOCOL
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
                    tables = _read_pod(inside, gateways[path])
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
            ends, objects = _decode_pod(inside, tables, path, pairs)
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


def _tell_apart(messages: Iterable[Facts]) -> Links:
    names: dict[str, str] = {}
    pods: dict[AttachmentKey, str] = {}
    macs: dict[str, str] = {}
    for message in messages:
        name, alias = message.get("ifname"), message.get("ifalias") or ""
        if alias.startswith(f"{ALIAS}:"):
            if key := alias_key(alias):
                pods[key] = name
                macs[name] = message.get("address")
        elif is_unfinished(name, message.get("address") or ""):
            continue
        elif message["ifi_type"] == ARPHRD_ETHER and _link_kind(message) not in STACKED:
            names.setdefault(message.get("address"), name)
    return Links(names, pods, macs)


def _read_host(host: Rtnetlink) -> HostTables:
    return HostTables(
        links=host.dump(LINKS),
        routes=list(_all_routes(host)),
        addresses=host.dump(ADDRESSES),
        neighbours=host.dump(NEIGHBOURS),
        rules=list(_all_rules(host)),
    )


def _decode_links(messages: Iterable[Facts], veths: set[str]) -> HostLinks:
    names = {m["index"]: m.get("ifname") for m in messages}
    links = {m["index"]: found for m in messages if (found := _decode_link(m, veths))}
    pairs = {
        (m["index"], m.get("link")): link.name
        for m in messages
        if isinstance(link := links.get(m["index"]), Veth) and is_owned(link)
    }
    return HostLinks(names, links, pairs)


def _decode_routes(
    messages: Iterable[Facts], names: dict[int, str], places: set[tuple[int | str, ...]]
) -> tuple[frozenset[Route], Connected]:
    """Return our routes and those in some places, and what the kernel has made by itself."""
    routes = [_decode_route(m, "", names) for m in messages]
    ours = frozenset(r for r in routes if r and (r.protocol == PROTOCOL or r.key in places))
    return ours, _connected(routes)


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
        if message is None or (link := _decode_link(message, {name})) is None:
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
            family=AF[_family_name(route.destination.version)],
            dst_len=route.destination.prefixlen,
            flags=RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH,
        )
        found = message and _decode_route(message, "", names)
        if found and found.key == route.key:
            objects.add(found)
    for neighbour in (o for o in places if isinstance(o, Neighbour) and o.device in indices):
        told = _read_neighbour(host, neighbour.address, indices[neighbour.device])
        objects |= _decode_neighbours([decode_message(NEIGHBOURS, m) for m in told], "", names)
    return objects, pairs


def _get(host: Rtnetlink, table: Table, attributes: Attributes, **fields: int) -> Facts | None:
    """Read one entry; None if there is no such thing."""
    told = _read_one(host, table, attributes, **fields)
    return decode_message(table, told[0]) if told else None


def _read_neighbour(where: Rtnetlink, address: IpAddress, link: int) -> Told:
    """Read a single neighbour, which is possible since Linux 5.1 (RTM_GETNEIGH, no dump)."""
    family = AF[_family_name(address.version)]
    return _read_one(where, NEIGHBOURS, (("NDA_DST", str(address)),), family=family, ifindex=link)


def _read_one(where: Rtnetlink, table: Table, attributes: Attributes, **fields: int) -> Told:
    try:
        return where.read_one(table, attributes, **fields)
    except NetlinkError as error:
        if error.code in GONE or error.code in UNREACHABLE:
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


def _decode_pod(
    inside: Rtnetlink, tables: PodTables, path: str, pairs: Pairs
) -> tuple[Ends, frozenset[KernelObject]]:
    objects: set[KernelObject] = set()
    names: dict[int, str] = {}
    ends = []
    for message in inside.decode(LINKS, tables.links):
        name = message.get("ifname")
        names[message["index"]] = name
        if name != "lo":
            # Each end names the other by index (IFLA_LINK).
            end = message.get("link"), message["index"]
            veth, mac, mtu = pairs.get(end, ""), message.get("address"), message.get("mtu")
            objects.add(PodLink(path, name, mac, mtu, _is_up(message), veth))
            ends.append((end, veth))
    routes = [
        _decode_route(message, path, names)
        for number, told in zip(AF.values(), tables.routes, strict=False)
        for message in inside.decode(ROUTES, told, family=number)
    ]
    connected = _connected(routes)
    for message in inside.decode(ADDRESSES, tables.addresses):
        found = _decode_address(message, path, names, connected)
        # fe80::/10 is the kernel's own business; 169.254.0.0/16 is nobody's but who puts it there.
        by_itself = found.address.version == 6 and found.address.is_link_local
        if found.device != "lo" and not by_itself:
            objects.add(found)
    for route in routes:
        if route and route.table == MAIN_TABLE:
            objects.add(route)
    neighbours = inside.decode(NEIGHBOURS, tables.neighbours)
    return tuple(ends), frozenset(objects | _decode_neighbours(neighbours, path, names))


def _decode_neighbours(
    messages: Iterable[Facts], path: str, names: Mapping[int, str]
) -> set[KernelObject]:
    found: set[KernelObject] = set()
    for message in messages:
        device, mac = names.get(message["ifindex"]), message.get("lladdr")
        if device and mac:
            found.add(Neighbour(path, device, ip_address(message.get("dst")), mac))
    return found


def _decode_link(message: Facts, veths: set[str]) -> Link | None:
    name, alias = message.get("ifname"), message.get("ifalias") or ""
    mac, mtu, up = message.get("address"), message.get("mtu"), _is_up(message)
    ours = alias.startswith(f"{ALIAS}:") or is_unfinished(name, mac or "")
    if ours or name in veths:
        return Veth(name, mac, mtu, alias, up)
    if message["ifi_type"] != ARPHRD_ETHER or _link_kind(message) in STACKED:
        return None
    return EniLink(mac, name, mtu, up)


def _connected(routes: Iterable[Route | None]) -> Connected:
    return {(r.device, r.destination) for r in routes if r and r.protocol == RTPROT_KERNEL}


def _decode_address(
    message: Facts, path: str, names: dict[int, str], connected: Connected
) -> LinkAddress:
    """Return an address; what counts is not its flag, but whether the route is there.

    The stock plugin adds it without the flag and deletes the route. To set the flag the address
    would have to go, and with a link's last address the kernel drops every route over the link.
    """
    address: IpAddress = ip_address(message.get("local") or message.get("address"))
    flags = message.get("flags") or 0
    device, length = names.get(message["index"], ""), message["prefixlen"]
    network = ip_network((address, length), strict=False)
    return LinkAddress(
        netns=path,
        device=device,
        address=address,
        prefix_length=length,
        connected_route=not flags & IFA_F_NOPREFIXROUTE and (device, network) in connected,
    )


def _decode_route(message: Facts, path: str, names: dict[int, str]) -> Route | None:
    """Return the route; None for those the kernel keeps for itself (local, broadcast, ...)."""
    if message["type"] != RTN_UNICAST and message["proto"] != PROTOCOL:
        return None
    family = FAMILIES["ipv4" if message["family"] == AF["ipv4"] else "ipv6"]
    destination = message.get("dst")
    gateway, source = message.get("gateway"), message.get("prefsrc")
    return Route(
        netns=path,
        table=message.get("table"),
        destination=_network(destination, message["dst_len"])
        if destination
        else family.everything,
        device=names.get(message.get("oif") or 0, ""),
        gateway=ip_address(gateway) if gateway else None,
        metric=message.get("priority") or 0,
        protocol=message["proto"],
        tos=message["tos"],
        options=_options(message),
        source=ip_address(source) if source else None,
    )


def _options(message: Facts) -> str:
    """Spell a route's metrics (``RTA_METRICS``), as ``mtu 1300 advmss 1260``."""
    metrics = message.get("metrics")
    pairs = metrics["attrs"] if metrics else ()
    return " ".join(f"{name.removeprefix('RTAX_').lower()} {value}" for name, value in pairs)


@lru_cache(4096)
def _network(address: str, length: int) -> IpNetwork:
    """Parse a network; the same ones come with every look."""
    return ip_network((address, length), strict=False)


def _decode_rule(message: Facts, family: str) -> Rule:
    source = message.get("src")
    mark = message.get("fwmark")
    others = sorted(f"{k}={v}" for k, v in message["attrs"] if k not in KNOWN_RULE_FIELDS)
    # Always there; all ones stand for "suppress nothing" (linux/fib_rules.h).
    suppressed = message.get("suppress_prefixlen")
    if suppressed not in (None, NOTHING, -1):
        others.append(f"suppress_prefixlen={suppressed}")
    if message["flags"] & FIB_RULE_INVERT:
        others.append("not")
    if message["action"] != FR_ACT_TO_TBL:
        others.append(f"action={message['action']}")
    return Rule(
        family=family,
        priority=message.get("priority") or 0,
        table=message.get("table"),
        mark=mark,
        mask=(message.get("fwmask") or 0) if mark is not None else 0,
        source=ip_network((source, message["src_len"]), strict=False) if source else None,
        protocol=message.get("protocol") or 0,
        extra=",".join(others),
    )


def _decode_foreign_rule(message: Facts, family: str) -> ForeignRule:
    rule = _decode_rule(message, family)
    return ForeignRule(
        family=family,
        priority=rule.priority,
        table=rule.table or 0,
        mark=rule.mark or 0,
        mask=rule.mask,
        source=rule.source,
        narrow=rule.extra != "",
    )


def _is_up(message: Facts) -> bool:
    return bool(message["flags"] & IFF_UP)


def _link_kind(message: Facts) -> str:
    return message.get("kind") or ""


def _family_name(version: int) -> str:
    return "ipv4" if version == 4 else "ipv6"


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Translate whatever keeps us from reading."""
    try:
        yield
    except NetlinkError as error:
        raise ObserveError(what, os.strerror(error.code)) from error
    except OSError as error:
        raise ObserveError(what, str(error)) from error
