"""Questions to the host's tables that are not about one domain's objects."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import NamedTuple

from reconciler.core.attachment import MAX_POD_ADDRESSES
from reconciler.core.datapath import (
    LOCAL_TABLE,
    PODS_TABLE,
    PROTOCOL,
    IpAddress,
    IpNetwork,
    host_network,
)
from reconciler.core.remembered import Remembered
from reconciler.diagnostics.foreign import ForeignRule
from reconciler.diagnostics.lookup import Found, Packet
from reconciler.domains.inputs import Links
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.errors import ObserveError
from reconciler.targets.netlink import entries, tables
from reconciler.targets.netlink.decode import (
    decode_address,
    decode_foreign_rule,
    decode_route,
    decode_rule,
    find_connected,
    tell_apart,
)
from reconciler.targets.netlink.host import RTM_F_LOOKUP_TABLE, get, learn_names
from reconciler.targets.netlink.message import HEADER, Bounds, KernelError, native, reading
from reconciler.targets.netlink.namespaces import entered
from reconciler.targets.netlink.rtnetlink import POD_BOUNDS, Memory, Rtnetlink
from reconciler.targets.netlink.surplus import FirstRules
from reconciler.targets.netlink.tables import (
    AF,
    Attributes,
    Facts,
    af_of,
    decode_message,
    value_of,
    values_of,
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


class Fib(NamedTuple):
    """Everything the host's lookups go by, other owners' objects included."""

    rules: frozenset[Rule]
    routes: frozenset[Route]
    addresses: frozenset[IpAddress]
    unread: tuple[tuple[str, str], ...] = ()


class Queries:
    """Asks this namespace's tables; raises ``ObserveError`` if they cannot be read."""

    def __init__(self) -> None:
        self._memory: Memory = {}
        self._tell_apart = Remembered(tell_apart)
        self._unread_rules: tuple[tuple[str, str], ...] = ()

    def links(self) -> Links:
        """Tell ENIs' links from pods'."""
        others: dict[str, str] = {}

        def is_ours(link: bytes) -> bool:
            if entries.may_be_ours(link):
                return True
            if entries.may_be_eni(link):  # there may be 20,000, so no more of them is looked at
                mac = value_of(tables.LINKS, link, "IFLA_ADDRESS").hex(":")
                others.setdefault(mac, entries.name_of(link).decode(errors="replace"))
            return False

        with reading("links"), Rtnetlink(self._memory) as host:
            messages = host.decode(
                tables.LINKS, host.read(tables.LINKS, takes=is_ours), "perhaps ours"
            )
        links: Links = self._tell_apart(messages)
        return replace(links, names={**others, **links.names})

    def foreign_rules(self) -> tuple[ForeignRule, ...]:
        """Return the ``ip rule``s of other owners, the kernel's own three left out.

        Not more than ``MAX_FOREIGN_RULES`` of a family; ``unread_rules`` names the rest.
        """
        first = FirstRules()

        def is_foreign(rule: bytes) -> bool:
            if entries.protocol_of(rule) == tables.RTPROT_KERNEL or entries.is_stamped(rule):
                return False
            return first(rule)

        with reading("other owners' rules"), Rtnetlink(self._memory) as host:
            messages = host.decode(
                tables.RULES, host.read_all(tables.RULES, takes=is_foreign), "foreign"
            )
        self._unread_rules = tuple(first.unread())
        return tuple(map(decode_foreign_rule, messages))

    def unread_rules(self) -> tuple[tuple[str, str], ...]:
        """Say what ``foreign_rules`` has left out the last time, and why."""
        return self._unread_rules

    def pod_addresses(self) -> dict[str, tuple[IpAddress, ...]]:
        """Where the pods' table leads: addresses by the host end of a pod's link, IPv4 first.

        Of a link with more than ``MAX_POD_ADDRESSES``, one more than that.
        """
        found: dict[int, set[bytes]] = {}

        def note(route: bytes) -> bool:
            own, way = values_of(tables.ROUTES, route, "RTA_DST", "RTA_OIF")
            if route[HEADER.size + 1] == 8 * len(own):
                held = found.setdefault(native(way), set())
                if len(held) <= MAX_POD_ADDRESSES:
                    held.add(own)
            return False

        with reading("the pods' routes"), Rtnetlink() as host:
            host.read_all(tables.ROUTES, (("RTA_TABLE", PODS_TABLE),), note, proto=PROTOCOL)
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
                link = get(host, tables.LINKS, (("IFLA_IFNAME", name),))
                told = _neighbours_of(host, link["index"]) if link else []
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
        """
        sought = Sought.of(addresses, networks)
        found: dict[IpNetwork, str] = {}
        if not any(sought):
            return found
        with reading("the host's own addresses"), Rtnetlink() as host:
            local = (("RTA_TABLE", LOCAL_TABLE),)
            for number in AF.values():
                for route in host.read(tables.LOCAL_ROUTES, local, sought.covers, family=number):
                    kind = ROUTE_TYPES[route[HEADER.size + 7]]
                    found[entries.network_of(route)] = f"a route of type {kind} in table local"
                for message in host.read(tables.ADDRESSES, (), sought.has_address, family=number):
                    facts = decode_message(tables.ADDRESSES, message)
                    own, index = _own_of(facts), facts["index"]
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
        first = FirstRules()

        def is_walked(rule: bytes) -> bool:
            return entries.protocol_of(rule) in (tables.RTPROT_KERNEL, PROTOCOL) or first(rule)

        with (
            reading("the host's rules, routes and addresses"),
            Rtnetlink(None, FIB_BOUNDS) as host,
        ):
            names = {m["index"]: m.get("ifname") for m in host.dump(tables.LINKS)}
            rules = host.decode(tables.RULES, host.read_all(tables.RULES, takes=is_walked))
            messages = host.decode(tables.ROUTES, host.read_all(tables.ROUTES))
            routes = [r for m in messages if (r := decode_route(m, "", names))]
            connected = find_connected(routes)
            addresses = [
                decode_address(m, "", names, connected) for m in host.dump(tables.ADDRESSES)
            ]
        return Fib(
            frozenset(map(decode_rule, rules)),
            frozenset(routes),
            frozenset(a.address for a in addresses),
            tuple(first.unread()),
        )

    def look_up(self, packet: Packet, netns: str = "") -> Found:
        """Ask the kernel where a packet would go, as ``ip route get`` does.

        Args:
            packet: what is sent.
            netns: identity of the namespace that is asked; "" for the host's.
        """
        destination, source = packet.destination, packet.source
        fields = {"family": af_of(destination), "dst_len": destination.max_prefixlen}
        wanted: Attributes = (("RTA_DST", str(destination)), ("RTA_MARK", packet.mark))
        if source is not None:
            fields["src_len"] = source.max_prefixlen
            wanted += (("RTA_SRC", str(source)),)
        if destination.version == 4:  # IPv6's answer always names the table
            fields["flags"] = RTM_F_LOOKUP_TABLE
        what = f"the answer to '{packet.command}'"
        with reading(what), entered(netns), Rtnetlink() as asked:
            if packet.link:
                link = get(asked, tables.LINKS, (("IFLA_IFNAME", packet.link),))
                wanted += (("RTA_IIF", link["index"] if link else 0),)
            try:
                told = asked.read_one(tables.LOOKUPS, wanted, (), **fields)
            except KernelError as error:
                return Found(0, "", refusal=os.strerror(error.errno or 0))
            answer = decode_message(tables.LOOKUPS, told[0])
            out = get(asked, tables.LINKS, (), index=answer.get("oif") or 0) or {}
        gateway = answer.get("gateway")
        via = ip_address(gateway) if gateway else None
        return Found(answer.get("table"), out.get("ifname", ""), via)


class Sought(NamedTuple):
    """Addresses that are looked for in the host's tables.

    Attributes:
        single: as the kernel says them.
        spans: length in bytes, first and last address of each network.
    """

    single: frozenset[bytes]
    spans: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, addresses: Iterable[IpAddress], networks: Iterable[IpNetwork]) -> Sought:
        """Pack them."""
        return cls(frozenset(a.packed for a in addresses), tuple(map(_span_of, networks)))

    def has(self, packed: bytes) -> bool:
        """Whether an address is among them."""
        number = int.from_bytes(packed, "big")
        return packed in self.single or self._meets(len(packed), number, number)

    def has_address(self, message: bytes) -> bool:
        """Whether an address of the host is."""
        return self.has(entries.own_address(message))

    def covers(self, route: bytes) -> bool:
        """Whether a route of table local leads to any of them."""
        if route[HEADER.size + 7] not in ROUTE_TYPES:
            return False
        packed = value_of(tables.ROUTES, route, "RTA_DST")
        if route[HEADER.size + 1] == 8 * len(packed):
            return self.has(packed)
        size, first, last = _span_of(entries.network_of(route))
        return self._meets(size, first, last) or any(
            len(s) == size and first <= int.from_bytes(s, "big") <= last for s in self.single
        )

    def _meets(self, size: int, first: int, last: int) -> bool:
        return any(s == size and f <= last and first <= end for s, f, end in self.spans)


def _span_of(network: IpNetwork) -> tuple[int, int, int]:
    first = int(network.network_address)
    return network.max_prefixlen // 8, first, first + network.num_addresses - 1


def _own_of(address: Facts) -> IpAddress:
    found: IpAddress = ip_address(address.get("local") or address.get("address"))
    return found


def _neighbours_of(host: Rtnetlink, link: int) -> list[IpAddress]:
    """Return whom the host has a permanent neighbour for, on one link: we have made it."""
    told = host.read_all(tables.NEIGHBOURS, (("NDA_IFINDEX", link),))
    return [ip_address(decode_message(tables.NEIGHBOURS, m)["dst"]) for m in told]


def _addresses_at(link: Facts) -> list[IpAddress]:
    """Return the addresses of the other end of a link, but for the kernel's own of IPv6."""
    nsid, index = link.get("link_netnsid"), link.get("link")
    if nsid is None or index is None:
        return []
    try:
        with Rtnetlink(None, POD_BOUNDS) as host:
            told = host.read_all(tables.ADDRESSES, (("IFA_TARGET_NETNSID", nsid),), index=index)
            found = [_own_of(decode_message(tables.ADDRESSES, m)) for m in told]
    except (ObserveError, OSError, ValueError):
        return []  # then it is not known
    return [a for a in found if not (a.version == 6 and a.is_link_local)]
