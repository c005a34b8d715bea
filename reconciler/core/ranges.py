"""Ranges of addresses: what interval sets hold. All of one family, disjoint, ascending."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from reconciler.core.datapath import IpAddress, IpNetwork

Range = tuple[IpAddress, IpAddress]  # first and last address, both included


def coalesce(networks: Iterable[IpNetwork]) -> tuple[Range, ...]:
    """Merge networks of one family into ranges with gaps between them."""
    return unite((n.network_address, n.broadcast_address) for n in networks)


def unite(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Merge ranges that overlap or touch."""
    merged: list[Range] = []
    end = -1
    # Numbers, because addresses compare ten times slower, and there may be 10,000.
    for first, last, range_ in sorted((int(r[0]), int(r[1]), r) for r in ranges):
        if merged and first <= end + 1:
            if last > end:
                merged[-1], end = (merged[-1][0], range_[1]), last
        else:
            merged.append(range_)
            end = last
    return tuple(merged)


def complement(ranges: Iterable[Range], everything: IpNetwork) -> tuple[Range, ...]:
    """Return what of a family the ranges leave out."""
    gaps: list[Range] = []
    begin: IpAddress | None = everything.network_address
    for first, last in unite(ranges):
        if begin is not None and begin != first:
            gaps.append((begin, first - 1))
        begin = last + 1 if last != everything.broadcast_address else None
    if begin is not None:
        gaps.append((begin, everything.broadcast_address))
    return tuple(gaps)


def find(ranges: Sequence[Range], address: IpAddress) -> Range | None:
    """Return the range that holds an address; the ranges are as ``unite`` leaves them."""
    place = bisect_right(ranges, int(address), key=lambda r: int(r[0]))
    if place and int(address) <= int(ranges[place - 1][1]):
        return ranges[place - 1]
    return None


def as_network(first: IpAddress, last: IpAddress) -> IpNetwork | None:
    """Return the one network that is exactly this range, or None."""
    size = int(last) - int(first) + 1
    if size & (size - 1) or int(first) % size:
        return None
    return ip_network((first, first.max_prefixlen - size.bit_length() + 1))


def print_range(first: IpAddress, last: IpAddress) -> str:
    """Write a range as an operator does: an address, a CIDR, or first-last."""
    if first == last:
        return str(first)
    cidr = as_network(first, last)
    return str(cidr) if cidr else f"{first}-{last}"
