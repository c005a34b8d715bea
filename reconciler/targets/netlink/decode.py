"""What the kernel's entries say, as the objects of the domains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from reconciler.core.attachment import AttachmentKey, alias_key
from reconciler.core.datapath import (
    ALIAS,
    FAMILIES,
    PODS_PRIORITY,
    PROTOCOL,
    IpAddress,
    IpNetwork,
)
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
from reconciler.targets.netlink.tables import AF, Facts, decode_entry, decode_host

KernelObject = Link | LinkAddress | Neighbour | Route | Rule

NOTHING = 0xFFFFFFFF
FIB_RULE_INVERT = 0x2

DEEDS = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
"""What a rule does in place of looking a table up: FR_ACT_* of linux/fib_rules.h."""

KNOWN_RULE_FIELDS = {
    *("family", "dst_len", "src_len", "tos", "res1", "res2", "action", "flags"),
    *("table", "priority", "protocol", "fwmark", "fwmask", "src", "suppress_prefixlen"),
}

Pairs = dict[tuple[int | None, int | None], str]
"""Name of each host veth of ours by (its index, its pod end's index)."""

Connected = set[tuple[str, IpNetwork]]
"""Networks that the kernel has made a route for by itself, with the device."""


class HostLinks(NamedTuple):
    """The host's links: names by index, those of ENIs and pods by index, and pods' host ends."""

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


def tell_apart(told: Told) -> Links:
    """Tell ENIs' links, by MAC, from pods', by attachment; leave out what is neither."""
    names: dict[str, str] = {}
    pods: dict[AttachmentKey, str] = {}
    macs: dict[str, str] = {}
    for facts in decode_host(tables.LINKS, told):
        name, mac = facts.get("ifname"), facts.get("address")
        if alias := _our_alias(facts):
            # Both ends on the host: there is no pod behind it, whatever its alias says.
            if facts.get("link_netnsid") is not None and (key := alias_key(alias)):
                pods[key] = name
                macs[name] = mac
        elif not is_unfinished(name, mac or "") and _is_eni(facts):
            names.setdefault(mac, name)
    return Links(names, pods, macs)


def decode_links(told: Told, veths: set[str]) -> HostLinks:
    """Make objects of the host's links, as ``decode_link`` does."""
    every = decode_host(tables.LINKS, told)
    links = {m["index"]: found for m in every if (found := decode_link(m, veths))}
    pairs: Pairs = {}
    for m in every:
        if isinstance(link := links.get(m["index"]), Veth) and is_owned(link):
            pairs[m["index"], m.get("link")] = link.name
    return HostLinks({m["index"]: m.get("ifname") for m in every}, links, pairs)


def decode_link(facts: Facts, veths: set[str]) -> Link | None:
    """Return an ENI's link or a pod's host end, known by its alias or name; None for others."""
    name, mac, mtu = facts.get("ifname"), facts.get("address"), facts.get("mtu")
    group: int = facts.get("group") or 0
    if _our_alias(facts) or is_unfinished(name, mac or "") or name in veths:
        alias, accepts = facts.get("ifalias") or "", bool(facts.get("af_spec"))
        return Veth(name, mac, mtu, alias, _is_up(facts), accepts, group)
    return EniLink(mac, name, mtu, _is_up(facts), group) if _is_eni(facts) else None


def _our_alias(facts: Facts) -> str:
    """Return a pair's alias if it is one of ours, or else nothing: all our links are pairs."""
    alias: str = facts.get("ifalias") or ""
    return alias if alias.startswith(f"{ALIAS}:") and facts.get("linkinfo") == "veth" else ""


def _is_eni(facts: Facts) -> bool:
    return facts["ifi_type"] == tables.ARPHRD_ETHER and facts.get("linkinfo") not in STACKED


def _is_up(facts: Facts) -> bool:
    return bool(facts["flags"] & tables.IFF_UP)


def decode_host_routes(told: Told, names: dict[int, str]) -> frozenset[Route]:
    """Return the host's routes, as ``decode_route`` does."""
    every = (decode_route(facts, "", names) for facts in decode_host(tables.ROUTES, told))
    return frozenset(r for r in every if r)


def decode_routes(told: Told, names: dict[int, str], path: str = "") -> frozenset[Route]:
    """Return some of a namespace's routes, as ``decode_route`` does."""
    every = (decode_route(decode_entry(tables.ROUTES, entry), path, names) for entry in told)
    return frozenset(r for r in every if r)


def decode_route(facts: Facts, path: str, names: dict[int, str]) -> Route | None:
    """Return the route; None for those the kernel keeps for itself (local, broadcast, ...)."""
    if facts["type"] != tables.RTN_UNICAST and facts["proto"] != PROTOCOL:
        return None
    return Route(
        netns=path,
        table=facts.get("table"),
        destination=_network(facts, "dst") or FAMILIES[_family_of(facts)].everything,
        device=names.get(facts.get("oif") or 0, ""),
        gateway=_address(facts.get("gateway")),
        metric=facts.get("priority") or 0,
        protocol=facts["proto"],
        tos=facts["tos"],
        options=facts.get("metrics") or "",
        source=_address(facts.get("prefsrc")),
    )


def find_connected(routes: Iterable[Route]) -> Connected:
    """Return what the kernel has made a route for because of an address."""
    return {(r.device, r.destination) for r in routes if r.protocol == tables.RTPROT_KERNEL}


def decode_pod(pod: PodTables, path: str, veths: tuple[str, ...]) -> frozenset[KernelObject]:
    """Make objects of a pod's tables; ``veths`` are its links' other ends, "" if none of ours."""
    objects: set[KernelObject] = set()
    names: dict[int, str] = {}
    for entry, veth in zip(pod.link, veths, strict=True):
        facts = decode_entry(tables.LINKS, entry)
        name = names[facts["index"]] = facts.get("ifname")
        mac, mtu = facts.get("address"), facts.get("mtu")
        objects.add(PodLink(path, name, mac, mtu, _is_up(facts), veth))
    connected = find_connected(decode_routes(pod.connected, names, path))
    for found in decode_addresses(pod.addresses, path, names, connected):
        # fe80::/10 is the kernel's own; 169.254.0.0/16 is not.
        if not (found.address.version == 6 and found.address.is_link_local):
            objects.add(found)
    objects |= decode_routes(pod.routes, names, path)
    return frozenset(objects | decode_neighbours(pod.neighbours, path, names))


def decode_host_neighbours(told: Told, names: Mapping[int, str]) -> frozenset[Neighbour]:
    """Make objects of the host's permanent neighbours, as ``decode_neighbours`` does."""
    return _make_neighbours(decode_host(tables.NEIGHBOURS, told), "", names)


def decode_neighbours(told: Told, path: str, names: Mapping[int, str]) -> frozenset[Neighbour]:
    """Make objects of permanent neighbours; leave out those without a MAC."""
    return _make_neighbours((decode_entry(tables.NEIGHBOURS, e) for e in told), path, names)


def _make_neighbours(
    every: Iterable[Facts], path: str, names: Mapping[int, str]
) -> frozenset[Neighbour]:
    found = set()
    for facts in every:
        device, mac = names.get(facts["ifindex"]), facts.get("lladdr")
        if device and mac:
            found.add(Neighbour(path, device, ip_address(facts.get("dst")), mac))
    return frozenset(found)


def address_of(facts: Facts) -> IpAddress:
    """Return a link's own address."""
    found: IpAddress = ip_address(facts.get("local") or facts.get("address"))
    return found


def decode_addresses(
    told: Told, path: str, names: dict[int, str], connected: Connected
) -> set[LinkAddress]:
    """Return addresses; what counts is not the flag, but whether the route is there.

    The stock plugin adds one without the flag and deletes the route. To set the flag the address
    would have to go, and with a link's last address the kernel drops every route over the link.
    """
    found = set()
    for facts in (decode_entry(tables.ADDRESSES, entry) for entry in told):
        address, length = address_of(facts), facts["prefixlen"]
        device, network = names.get(facts["index"], ""), (address, length)
        has_route = not (facts.get("flags") or 0) & tables.IFA_F_NOPREFIXROUTE
        has_route = has_route and (device, ip_network(network, strict=False)) in connected
        found.add(LinkAddress(path, device, address, length, has_route))
    return found


def decode_rule(facts: Facts) -> Rule:
    """Return a rule; what we never ask for is spelt in its ``extra``."""
    mark = facts.get("fwmark")
    others = sorted(f"FRA_{k.upper()}={v}" for k, v in facts.items() if k not in KNOWN_RULE_FIELDS)
    # Always there; all ones stand for "suppress nothing" (linux/fib_rules.h).
    suppressed = facts.get("suppress_prefixlen", NOTHING)
    if suppressed != NOTHING:
        others.append(f"suppress_prefixlen={suppressed}")
    if facts["flags"] & FIB_RULE_INVERT:
        others.append("not")
    if facts["tos"]:
        others.append(f"tos={facts['tos']:#x}")
    if facts["action"] != tables.FR_ACT_TO_TBL:
        others.append(f"action={facts['action']}")
    return Rule(
        family=_family_of(facts),
        priority=facts.get("priority") or 0,
        table=facts.get("table"),
        mark=mark,
        mask=(facts.get("fwmask") or 0) if mark is not None else 0,
        source=_network(facts, "src"),
        protocol=facts.get("protocol") or 0,
        extra=",".join(others),
    )


def decode_foreign_rule(facts: Facts) -> ForeignRule:
    """Return what of another owner's rule can hurt us."""
    rule = decode_rule(facts)
    does = DEEDS.get(facts["action"], "")
    if facts["action"] == tables.FR_ACT_GOTO and (facts.get("goto") or 0) > PODS_PRIORITY:
        does = f"goto {facts.get('goto')}"  # past ours
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
        destination=_network(facts, "dst"),
        does=does,
    )


def _address(found: str | None) -> IpAddress | None:
    return ip_address(found) if found else None


def _network(facts: Facts, end: str) -> IpNetwork | None:
    """Return a route's or rule's network, ``dst`` or ``src``; None for all there is."""
    found = facts.get(end)
    return _parse_network(found, facts[f"{end}_len"]) if found else None


@lru_cache(1 << 12)
def _parse_network(address: str, length: int) -> IpNetwork:
    return ip_network((address, length), strict=False)


def _family_of(facts: Facts) -> str:
    return "ipv4" if facts["family"] == AF["ipv4"] else "ipv6"
