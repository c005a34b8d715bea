"""What the kernel's tables say, as the objects of the domains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from reconciler.core.attachment import AttachmentKey, alias_key
from reconciler.core.datapath import ALIAS, FAMILIES, PODS_PRIORITY, PROTOCOL, IpAddress, IpNetwork
from reconciler.diagnostics.foreign import ForeignRule
from reconciler.domains.address import LinkAddress
from reconciler.domains.inputs import Links
from reconciler.domains.link import EniLink, Link, PodLink, Veth, is_owned, is_unfinished
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.targets.netlink import tables
from reconciler.targets.netlink.entries import STACKED
from reconciler.targets.netlink.rtnetlink import Told
from reconciler.targets.netlink.tables import AF, Facts, decode_message

KernelObject = Link | LinkAddress | Neighbour | Route | Rule

NOTHING = 0xFFFFFFFF
FIB_RULE_INVERT = 0x2

DEEDS = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
"""What a rule does in place of looking a table up: FR_ACT_* of linux/fib_rules.h."""

KNOWN_RULE_FIELDS = {
    "FRA_TABLE",
    "FRA_PRIORITY",
    "FRA_PROTOCOL",
    "FRA_FWMARK",
    "FRA_FWMASK",
    "FRA_SRC",
    "FRA_SUPPRESS_PREFIXLEN",
}

Pairs = dict[tuple[int | None, int | None], str]
"""Name of each host veth of ours by (its index, its pod end's index)."""

Connected = set[tuple[str, IpNetwork]]
"""Networks that the kernel has made a route for by itself, with the device."""

Ends = tuple[tuple[tuple[int | None, int | None], str], ...]
"""What was taken for the other end of each link of a pod."""


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
    """What a pod's tables say of what is ours in there, not decoded.

    Attributes:
        link: the one that has the name of ours; nothing if there is none.
        routes: ours, and what else stands in the place of one.
        connected: routes that the kernel made by itself; nothing if nothing depends on them.
    """

    link: Told = ()
    routes: Told = ()
    connected: Told = ()
    addresses: Told = ()
    neighbours: Told = ()

    @property
    def digest(self) -> bytes:
        """Sixteen bytes that are others when anything is."""
        found = blake2b(digest_size=16)
        # What is in which table is told by each message's kind, and its family.
        for told in self:
            for message in told:  # each begins with its length and kind
                found.update(message)
        return found.digest()


def tell_apart(messages: Iterable[Facts]) -> Links:
    """Tell ENIs' links, by MAC, from pods', by attachment; leave out what is neither."""
    names: dict[str, str] = {}
    pods: dict[AttachmentKey, str] = {}
    macs: dict[str, str] = {}
    for message in messages:
        name = message.get("ifname")
        if alias := _our_alias(message):
            # Both ends on the host: there is no pod behind it, whatever its alias says.
            if message.get("link_netnsid") is not None and (key := alias_key(alias)):
                pods[key] = name
                macs[name] = message.get("address")
        elif is_unfinished(name, message.get("address") or ""):
            continue
        elif message["ifi_type"] == tables.ARPHRD_ETHER and _link_kind(message) not in STACKED:
            names.setdefault(message.get("address"), name)
    return Links(names, pods, macs)


def decode_links(messages: Iterable[Facts], veths: set[str]) -> HostLinks:
    """Make objects of the host's links, as ``decode_link`` does."""
    names = {m["index"]: m.get("ifname") for m in messages}
    links = {m["index"]: found for m in messages if (found := decode_link(m, veths))}
    pairs = {
        (m["index"], m.get("link")): link.name
        for m in messages
        if isinstance(link := links.get(m["index"]), Veth) and is_owned(link)
    }
    return HostLinks(names, links, pairs)


def decode_link(message: Facts, veths: set[str]) -> Link | None:
    """Return a pod's host end or an ENI's link; None for what is neither.

    Args:
        message: the link.
        veths: names that host ends have whatever their alias says.
    """
    name, alias = message.get("ifname"), message.get("ifalias") or ""
    mac, mtu, up = message.get("address"), message.get("mtu"), _is_up(message)
    ours = _our_alias(message) or is_unfinished(name, mac or "")
    if ours or name in veths:
        return Veth(name, mac, mtu, alias, up)
    if message["ifi_type"] != tables.ARPHRD_ETHER or _link_kind(message) in STACKED:
        return None
    return EniLink(mac, name, mtu, up)


def _our_alias(message: Facts) -> str:
    """Return a pair's alias if it is one of ours, or else nothing: all our links are pairs."""
    alias = message.get("ifalias") or ""
    return alias if alias.startswith(f"{ALIAS}:") and _link_kind(message) == "veth" else ""


def decode_routes(messages: Iterable[Facts], names: dict[int, str]) -> frozenset[Route]:
    """Return the host's routes, but for those that the kernel keeps for itself."""
    return frozenset(r for m in messages if (r := decode_route(m, "", names)))


def decode_route(message: Facts, path: str, names: dict[int, str]) -> Route | None:
    """Return the route; None for those the kernel keeps for itself (local, broadcast, ...)."""
    if message["type"] != tables.RTN_UNICAST and message["proto"] != PROTOCOL:
        return None
    family = FAMILIES[_family_of(message)]
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


def find_connected(routes: Iterable[Route | None]) -> Connected:
    """Return what the kernel has made a route for because of an address."""
    return {(r.device, r.destination) for r in routes if r and r.protocol == tables.RTPROT_KERNEL}


def decode_pod(pod: PodTables, path: str, pairs: Pairs) -> tuple[Ends, frozenset[KernelObject]]:
    """Make objects of a pod's tables; say what was taken for the other end of its link.

    Args:
        pod: as read.
        path: identity of the pod's namespace.
        pairs: the host's ends.
    """
    objects: set[KernelObject] = set()
    names: dict[int, str] = {}
    ends = []
    for message in (decode_message(tables.LINKS, m) for m in pod.link):
        name = message.get("ifname")
        names[message["index"]] = name
        # Each end names the other by index (IFLA_LINK).
        end = message.get("link"), message["index"]
        veth, mac, mtu = pairs.get(end, ""), message.get("address"), message.get("mtu")
        objects.add(PodLink(path, name, mac, mtu, _is_up(message), veth))
        ends.append((end, veth))

    def routes(told: Told) -> list[Route | None]:
        return [decode_route(decode_message(tables.ROUTES, m), path, names) for m in told]

    connected = find_connected(routes(pod.connected))
    for message in pod.addresses:
        found = decode_address(decode_message(tables.ADDRESSES, message), path, names, connected)
        # fe80::/10 is the kernel's own; 169.254.0.0/16 is not.
        if not (found.address.version == 6 and found.address.is_link_local):
            objects.add(found)
    objects.update(r for r in routes(pod.routes) if r)
    neighbours = [decode_message(tables.NEIGHBOURS, m) for m in pod.neighbours]
    return tuple(ends), frozenset(objects | decode_neighbours(neighbours, path, names))


def decode_neighbours(
    messages: Iterable[Facts], path: str, names: Mapping[int, str]
) -> set[KernelObject]:
    """Make objects of permanent neighbours; leave out those without a MAC."""
    found: set[KernelObject] = set()
    for message in messages:
        device, mac = names.get(message["ifindex"]), message.get("lladdr")
        if device and mac:
            found.add(Neighbour(path, device, ip_address(message.get("dst")), mac))
    return found


def decode_address(
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
        connected_route=not flags & tables.IFA_F_NOPREFIXROUTE and (device, network) in connected,
    )


def decode_rule(message: Facts) -> Rule:
    """Return a rule; what we never ask for is spelt in its ``extra``."""
    source = message.get("src")
    mark = message.get("fwmark")
    others = sorted(f"{k}={v}" for k, v in message["attrs"] if k not in KNOWN_RULE_FIELDS)
    # Always there; all ones stand for "suppress nothing" (linux/fib_rules.h).
    suppressed = message.get("suppress_prefixlen")
    if suppressed not in (None, NOTHING, -1):
        others.append(f"suppress_prefixlen={suppressed}")
    if message["flags"] & FIB_RULE_INVERT:
        others.append("not")
    if message["tos"]:
        others.append(f"tos={message['tos']:#x}")
    if message["action"] != tables.FR_ACT_TO_TBL:
        others.append(f"action={message['action']}")
    return Rule(
        family=_family_of(message),
        priority=message.get("priority") or 0,
        table=message.get("table"),
        mark=mark,
        mask=(message.get("fwmask") or 0) if mark is not None else 0,
        source=ip_network((source, message["src_len"]), strict=False) if source else None,
        protocol=message.get("protocol") or 0,
        extra=",".join(others),
    )


def decode_foreign_rule(message: Facts) -> ForeignRule:
    """Return what of another owner's rule can hurt us."""
    rule = decode_rule(message)
    destination = message.get("dst")
    does = DEEDS.get(message["action"], "")
    if message["action"] == tables.FR_ACT_GOTO and (message.get("goto") or 0) > PODS_PRIORITY:
        does = f"goto {message.get('goto')}"  # past ours
    told = {word.partition("=")[0] for word in rule.extra.split(",") if word}
    told -= {"FRA_DST"} | ({"action", "FRA_GOTO"} if does else set())
    return ForeignRule(
        family=rule.family,
        priority=rule.priority,
        table=rule.table or 0,
        mark=rule.mark or 0,
        mask=rule.mask,
        source=rule.source,
        selects_more=bool(told),
        destination=ip_network((destination, message["dst_len"]), strict=False)
        if destination
        else None,
        does=does,
    )


def _is_up(message: Facts) -> bool:
    return bool(message["flags"] & tables.IFF_UP)


def _link_kind(message: Facts) -> str:
    return message.get("kind") or ""


def _family_of(message: Facts) -> str:
    return "ipv4" if message["family"] == AF["ipv4"] else "ipv6"
