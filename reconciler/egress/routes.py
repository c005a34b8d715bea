"""What route tables send to networks that know pods' addresses.

Routes are read as the VPC's router does: the longest prefix decides. So of 10.0.0.0/8 to a transit
gateway beside 10.5.0.0/16 to a NAT gateway, the first without the second is left. ENIs of several
subnets may have several tables, and pods of all of them share one set of exclusions. So only what
every one of the tables sends there counts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, summarize_address_range

from reconciler.core.datapath import FAMILIES
from reconciler.core.ranges import Range, coalesce, complement, find, unite
from reconciler.egress.source import Entry, sort_entries

TARGETS: Mapping[str, tuple[str, ...]] = {
    "@routes": ("pcx-", "tgw-", "vgw-", "lgw-", "eni-", "arn:"),
    "@transit": ("tgw-", "arn:"),
    "@onprem": ("vgw-", "lgw-"),
}
"""How the targets' ids begin, by the word that means them; a Cloud WAN core network has an ARN.
An internet, NAT or carrier gateway is among none of them: it knows no address of a pod."""

EVERYTHING = FAMILIES["ipv4"].everything


@dataclass(frozen=True, slots=True)
class Route:
    """A route that is active: a destination, and the target's id."""

    network: IPv4Network
    target: str


Table = tuple[str, tuple[Route, ...]]
"""A route table: its id, or its name with it, and its routes."""


def entries_of(word: str, tables: Sequence[Table]) -> tuple[Entry, ...]:
    """Return what all these tables send to targets of a word, piece by piece."""
    kinds = TARGETS[word]
    parts = [_sent(routes, kinds) for _, routes in tables]
    common = _common([coalesce(network for network, _ in part) for part in parts])
    found = {
        Entry(network, target, name)
        for (name, _), part in zip(tables, parts, strict=True)
        for cidr, target in part
        for network in _within(cidr, common)
    }
    best: dict[IPv4Network, Entry] = {}
    for entry in sort_entries(tuple(found)):
        best.setdefault(entry.network, entry)  # type: ignore[arg-type]  # IPv4 alone is routed here
    return tuple(best.values())


def _sent(routes: Iterable[Route], kinds: tuple[str, ...]) -> list[tuple[IPv4Network, str]]:
    """Return what one table sends to such targets, less what longer prefixes send elsewhere."""
    routes = list(routes)
    others = sorted({r.network for r in routes if not r.target.startswith(kinds)})
    begins = [int(n.network_address) for n in others]
    sent = []
    for route in routes:
        if not route.target.startswith(kinds):
            continue
        # Networks are nested or disjoint: those within begin within.
        first, last = int(route.network.network_address), int(route.network.broadcast_address)
        within = others[bisect_left(begins, first) : bisect_right(begins, last)]
        holes = [n for n in within if n.prefixlen > route.network.prefixlen]
        if not holes:
            sent.append((route.network, route.target))
            continue
        left = unite(_minus(coalesce([route.network]), coalesce(holes)))
        sent += [(n, route.target) for n in _networks(left)]
    return sent


def _common(sets: Sequence[tuple[Range, ...]]) -> tuple[Range, ...]:
    """Return what all sets of ranges have."""
    if not sets:
        return ()
    lacking = [gap for ranges in sets for gap in complement(ranges, EVERYTHING)]
    return complement(lacking, EVERYTHING)


def _minus(ranges: tuple[Range, ...], holes: tuple[Range, ...]) -> tuple[Range, ...]:
    return _common([ranges, complement(holes, EVERYTHING)])


def _within(network: IPv4Network, ranges: tuple[Range, ...]) -> Iterable[IPv4Network]:
    """Return the parts of a network that ranges hold."""
    begin, end = network.network_address, network.broadcast_address
    range_ = find(ranges, begin)
    if range_ is not None and int(end) <= int(range_[1]):
        return (network,)
    return _networks(_common([coalesce([network]), ranges]))


def _networks(ranges: Iterable[Range]) -> list[IPv4Network]:
    return [n for r in ranges for n in summarize_address_range(*r)]  # type: ignore[misc]
