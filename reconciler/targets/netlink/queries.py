"""Questions to the host's tables that are not about one domain's objects."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import NamedTuple

from reconciler.core.attachment import MAX_POD_ADDRESSES
from reconciler.core.datapath import (
    FAMILIES,
    LOCAL_TABLE,
    PODS_TABLE,
    PROTOCOL,
    IpAddress,
    IpNetwork,
    host_network,
)
from reconciler.core.remembered import Remembered
from reconciler.diagnostics.each_packet import PLAIN_QUEUES
from reconciler.diagnostics.foreign import ForeignRule
from reconciler.diagnostics.lookup import Found, Packet
from reconciler.domains.inputs import Links
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.errors import ObserveError
from reconciler.targets.netlink import decode, entries, tables
from reconciler.targets.netlink.message import (
    HEADER,
    NLM_F_DUMP,
    Bounds,
    KernelError,
    Meter,
    attributes,
    native,
    reading,
)
from reconciler.targets.netlink.namespaces import entered
from reconciler.targets.netlink.read import RTM_F_LOOKUP_TABLE, learn_names
from reconciler.targets.netlink.rtnetlink import HOST_BOUNDS, POD_BOUNDS, Rtnetlink, Told
from reconciler.targets.netlink.tables import (
    ADDRESSES,
    LINKS,
    LOOKUPS,
    ROUTES,
    RULES,
    decode_entry,
)

MAX_UNKNOWN = 32
"""Links of ours without a known address that one look asks about. While there is one, no pod is
given an address, so the others can wait for the next observation."""

FIB_BOUNDS = Bounds(16 << 20, 30, 10.0)
"""To trace a connection takes whole tables: some 200,000 routes."""

ROUTE_TYPES = {
    2: "local",
    3: "broadcast",
    4: "anycast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
}
"""Route types other than ``unicast`` that end a packet's way (linux/rtnetlink.h, RTN_*)."""


RTM_GETQDISC, TCA_KIND, TCMSG_BYTES = 38, 1, 20  # linux/rtnetlink.h

MAX_QUEUES = 1024
"""That are named; one is enough."""


class Fib(NamedTuple):
    """Everything the host's lookups go by, other owners' objects included."""

    rules: frozenset[Rule]
    routes: frozenset[Route]
    addresses: frozenset[IpAddress]
    unread: tuple[tuple[str, str], ...] = ()


class Queries:
    """Asks this namespace's tables; raises ``ObserveError`` if they cannot be read."""

    def __init__(self) -> None:
        self._tell_apart = Remembered(decode.tell_apart)
        self._foreign = Remembered(_decode_foreign_rules)
        self._unread_rules: tuple[tuple[str, str], ...] = ()

    def links(self) -> Links:
        """Tell ENIs' links from pods'."""
        others: dict[str, str] = {}

        def is_ours(link: bytes) -> bool:
            if entries.may_be_ours(link):
                return True
            if entries.may_be_eni(link):  # there may be 20,000, so no more of them is looked at
                mac = tables.value_of(LINKS, link, "IFLA_ADDRESS").hex(":")
                others.setdefault(mac, entries.name_of(link).decode(errors="replace"))
            return False

        with reading("links"), Rtnetlink() as host:
            links = self._tell_apart(host.read(LINKS, takes=is_ours))
        return replace(links, names={**others, **links.names})

    def foreign_rules(self) -> tuple[ForeignRule, ...]:
        """Return the ``ip rule``s of other owners, the kernel's own three left out.

        Not more than ``MAX_FOREIGN_RULES`` of a family; ``unread_rules`` names the rest.
        """
        first = entries.FirstRules()

        def is_foreign(rule: bytes) -> bool:
            is_ours = entries.protocol_of(rule) == tables.RTPROT_KERNEL or entries.is_stamped(rule)
            return not is_ours and first(rule)

        with reading("other owners' rules"), Rtnetlink() as host:
            told = host.read_all(RULES, takes=is_foreign)
        self._unread_rules = tuple(first.unread())
        return self._foreign(told)

    def unread_rules(self) -> tuple[tuple[str, str], ...]:
        """Say what ``foreign_rules`` has left out the last time, and why."""
        return self._unread_rules

    def pod_addresses(self) -> dict[str, tuple[IpAddress, ...]]:
        """Where the pods' table leads: addresses by the host end of a pod's link, IPv4 first.

        Of a link with more than ``MAX_POD_ADDRESSES``, one more than that.
        """
        found: dict[int, set[bytes]] = {}

        def note(route: bytes) -> bool:
            own, way = tables.values_of(ROUTES, route, "RTA_DST", "RTA_OIF")
            if route[1] == 8 * len(own):
                held = found.setdefault(native(way), set())
                if len(held) <= MAX_POD_ADDRESSES:
                    held.add(own)
            return False

        with reading("the pods' routes"), Rtnetlink() as host:
            host.read_all(ROUTES, (("RTA_TABLE", PODS_TABLE),), note, proto=PROTOCOL)
        names: dict[int, str] = {}
        learn_names(names, found)
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
        """
        found: dict[str, tuple[IpAddress, ...]] = {}
        unknown = 0
        for name in links:
            if unknown == MAX_UNKNOWN:
                break
            with reading(f"what is behind {name}"), Rtnetlink() as host:
                link = host.get(LINKS, (("IFLA_IFNAME", name),))
                told = _neighbours_of(host, link["index"]) if link else []
            if not 0 < len(told) <= MAX_POD_ADDRESSES:
                told = _addresses_at(link) if link else []
            unknown += not told
            found[name] = tuple(sorted(set(told), key=lambda a: (a.version, int(a))))
        return found

    def occupied(
        self, addresses: Iterable[IpAddress], networks: Iterable[IpNetwork]
    ) -> dict[IpNetwork, str]:
        """Say which of these addresses, or in these networks, are the host's own, and why."""
        single = {(a.max_prefixlen, int(a)) for a in addresses}
        spans = [
            (n.max_prefixlen, int(n.network_address), int(n.broadcast_address)) for n in networks
        ]
        found: dict[IpNetwork, str] = {}
        sought = {bits for bits, *_ in (*single, *spans)}

        def is_sought(packed: bytes, length: int) -> bool:
            """Whether a network has any of them in it."""
            bits, first = 8 * len(packed), int.from_bytes(packed, "big")
            last = first | (1 << bits - length) - 1
            if any(b == bits and f <= last and first <= end for b, f, end in spans):
                return True
            if first == last:
                return (bits, first) in single
            return any(b == bits and first <= one <= last for b, one in single)

        def is_end(route: bytes) -> bool:
            size = 4 if route[0] == tables.AF["ipv4"] else 16
            packed = tables.value_of(ROUTES, route, "RTA_DST").ljust(size, b"\0")
            return route[7] in ROUTE_TYPES and is_sought(packed, route[1])  # ``struct rtmsg``

        def is_own(address: bytes) -> bool:
            packed = entries.own_address(address)
            return is_sought(packed, 8 * len(packed))

        with reading("the host's own addresses"), Rtnetlink() as host:
            # Each link has some of IPv6, also where pods have none.
            families = [f.name for f in FAMILIES.values() if f.everything.max_prefixlen in sought]
            read = partial(host.read_all, families=families)
            for route in read(tables.LOCAL_ROUTES, (("RTA_TABLE", LOCAL_TABLE),), is_end):
                kind = ROUTE_TYPES[route[7]]
                found[entries.network_of(route)] = f"a route of type {kind} in table local"
            for address in read(ADDRESSES, (), is_own):
                facts = decode_entry(ADDRESSES, address)
                own, index = decode.address_of(facts), facts["index"]
                names: dict[int, str] = {}
                learn_names(names, [index])
                device = names.get(index, "a link that is gone by now")
                where = f"ip address delete {own}/{facts['prefixlen']} dev {device}"
                found[host_network(own)] = f"it is on {device} ({where})"
        return found

    def fib(self) -> Fib:
        """Read every unicast route and address of the host, and its rules.

        Of other owners' rules only those that ``foreign_rules`` reads; the rest is named.
        """
        first = entries.FirstRules()

        def is_walked(rule: bytes) -> bool:
            return entries.protocol_of(rule) in (tables.RTPROT_KERNEL, PROTOCOL) or first(rule)

        with reading("the host's rules, routes and addresses"), Rtnetlink(FIB_BOUNDS) as host:
            names = {m["index"]: m.get("ifname") for m in host.dump(LINKS)}
            rules = host.read_all(RULES, takes=is_walked)
            routes = decode.decode_routes(host.read_all(ROUTES), names)
            addresses = frozenset(map(decode.address_of, host.dump(ADDRESSES)))
        found = frozenset(decode.decode_rule(decode_entry(RULES, rule)) for rule in rules)
        return Fib(found, routes, addresses, tuple(first.unread()))

    def queues(self) -> frozenset[tuple[str, str]]:
        """Say which links have queues of tc, or places for its filters; name and kind of each.

        Not of the kinds that links have by default, of which there are many. MAX_QUEUES at most.
        """
        found: set[tuple[int, str]] = set()
        with reading("the queues of links"), Rtnetlink() as host:
            meter = Meter("queues", HOST_BOUNDS)
            for whole in host.ask(RTM_GETQDISC, NLM_F_DUMP, bytes(TCMSG_BYTES), meter):
                entry = whole[HEADER.size :]
                kind = dict(attributes(entry, TCMSG_BYTES)).get(TCA_KIND, b"").rstrip(b"\0")
                name = kind.decode(errors="backslashreplace")
                if name not in PLAIN_QUEUES and len(found) < MAX_QUEUES:
                    found.add((native(entry[4:8]), name))  # ``struct tcmsg``
        names: dict[int, str] = {}
        learn_names(names, {index for index, _ in found})
        return frozenset((names[index], kind) for index, kind in found if index in names)

    def look_up(self, packet: Packet, netns: str = "") -> Found:
        """Ask a namespace ("": the host) where a packet would go, as ``ip route get`` does."""
        destination, source = packet.destination, packet.source
        fields = {"family": tables.af_of(destination), "dst_len": destination.max_prefixlen}
        wanted: tables.Attributes = (("RTA_DST", str(destination)), ("RTA_MARK", packet.mark))
        if source is not None:
            fields["src_len"] = source.max_prefixlen
            wanted += (("RTA_SRC", str(source)),)
        if destination.version == 4:  # IPv6's answer always names the table
            fields["flags"] = RTM_F_LOOKUP_TABLE
        what = f"the answer to '{packet.command}'"
        with reading(what), entered(netns), Rtnetlink() as asked:
            if packet.link:
                link = asked.get(LINKS, (("IFLA_IFNAME", packet.link),))
                wanted += (("RTA_IIF", link["index"] if link else 0),)
            try:
                (told,) = asked.read_one(LOOKUPS, wanted, (), **fields)
            except KernelError as error:
                return Found(0, "", refusal=os.strerror(error.errno or 0))
            answer = decode_entry(LOOKUPS, told)
            out = asked.get(LINKS, (), index=answer.get("oif") or 0) or {}
        gateway = answer.get("gateway")
        via = ip_address(gateway) if gateway else None
        return Found(answer.get("table"), out.get("ifname", ""), via)


def _decode_foreign_rules(told: Told) -> tuple[ForeignRule, ...]:
    return tuple(decode.decode_foreign_rule(decode_entry(RULES, rule)) for rule in told)


def _neighbours_of(host: Rtnetlink, link: int) -> list[IpAddress]:
    """Return whom the host has a permanent neighbour for, on one link: we have made it."""
    told = host.read_all(tables.NEIGHBOURS, (("NDA_IFINDEX", link),))
    return [ip_address(decode_entry(tables.NEIGHBOURS, entry)["dst"]) for entry in told]


def _addresses_at(link: tables.Facts) -> list[IpAddress]:
    """Return the addresses of the other end of a link, but for the kernel's own of IPv6."""
    nsid, index = link.get("link_netnsid"), link.get("link")
    if nsid is None or index is None:
        return []
    try:
        with Rtnetlink(POD_BOUNDS) as host:
            told = host.read_all(ADDRESSES, (("IFA_TARGET_NETNSID", nsid),), index=index)
            found = [decode.address_of(decode_entry(ADDRESSES, entry)) for entry in told]
    except (ObserveError, OSError, ValueError):
        return []  # then it is not known
    return [a for a in found if not (a.version == 6 and a.is_link_local)]
