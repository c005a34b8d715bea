"""What the destinations of ``snat.rules`` stand for, and which rule decides.

A rule is about what is beyond the VPC. A CIDR that contains the VPC, as 0.0.0.0/0, means the rest
of it; one that lies within the VPC is meant as it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from typing import NamedTuple

from reconciler.core.datapath import (
    FAMILIES,
    PRIVATE,
    Family,
    IpAddress,
    IpNetwork,
    family_of,
)
from reconciler.core.ranges import Range, coalesce, complement, find, unite
from reconciler.core.remembered import RememberedWhileAsked
from reconciler.egress.destinations import IPV4, Egress, holder, networks
from reconciler.errors import Issue
from schemas.snat import EgressRule, Snat

LINK_LOCAL = tuple(map(ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32")))
"""What is on the node's own wire: instance metadata, time, the VPC's resolver, and a resolver of
the node's (EC2 user guide, "Instance metadata"; NodeLocal DNSCache)."""


def versions(rule: EgressRule) -> frozenset[int]:
    """Return the IP versions that a rule is about; sources stand for IPv4 alone."""
    return frozenset(4 if isinstance(each, str) else each.version for each in rule.to)


def local_networks(
    vpc_cidrs: tuple[IpNetwork, ...], services: tuple[IpNetwork, ...]
) -> tuple[IpNetwork, ...]:
    """Return what no CIDR of a rule means that is more than a part of the VPC.

    ``services``: ``routing.externalServiceCIDRs``, which other software translates later.
    """
    return (*vpc_cidrs, *LINK_LOCAL, *services)


def ranges_of(
    rule: EgressRule,
    egress: Egress,
    vpc_cidrs: tuple[IpNetwork, ...],
    services: tuple[IpNetwork, ...],
    family: Family,
) -> tuple[Range, ...]:
    """Return a rule's destinations of a family, coalesced; of an unknown source none."""
    inside = tuple(n for n in rule.to if not isinstance(n, str) and _is_inside(n, vpc_cidrs))
    others = networks((n for n in rule.to if n not in inside), egress)
    return _ranges(inside, others, local_networks(vpc_cidrs, services), family)


@RememberedWhileAsked
def _ranges(
    inside: tuple[IpNetwork, ...],
    others: tuple[IpNetwork, ...],
    local: tuple[IpNetwork, ...],
    family: Family,
) -> tuple[Range, ...]:
    """Return the ranges; remembered, because 10,000 take tenths of a second in each pass."""

    def of_family(given: Iterable[IpNetwork]) -> tuple[Range, ...]:
        return coalesce(n for n in given if n.version == family.version)

    left_out = (*complement(of_family(others), family.everything), *of_family(local))
    return unite((*of_family(inside), *complement(left_out, family.everything)))


def _is_inside(network: IpNetwork, vpc_cidrs: tuple[IpNetwork, ...]) -> bool:
    return any(
        network.version == cidr.version
        and network.prefixlen >= cidr.prefixlen
        and network.network_address in cidr
        for cidr in vpc_cidrs
    )


def covering(
    rules: Iterable[EgressRule],
    egress: Egress,
    vpc_cidrs: tuple[IpNetwork, ...],
    services: tuple[IpNetwork, ...],
    destination: IpAddress,
) -> Iterator[tuple[int, EgressRule, str]]:
    """Yield the rules that are about a destination, each with its place and what of it says so."""
    for place, rule in enumerate(rules):
        found = ranges_of(rule, egress, vpc_cidrs, services, family_of(destination))
        if find(found, destination):
            yield place, rule, holder(rule.to, egress, destination)


def find_warnings(
    snat: Snat,
    egress: Egress,
    vpc_cidrs: tuple[IpNetwork, ...],
    services: tuple[IpNetwork, ...],
) -> Iterator[Issue]:
    """Say which rules never decide, and which send out what no answer comes back for.

    That a pattern is covered by an earlier one is seen where that is the same, or ``*``.
    """
    known = Known(egress, vpc_cidrs, services)
    for place, rule in enumerate(snat.rules):
        subject = f"snat.rules[{place}]"
        earlier = {
            n: r for n, r in enumerate(snat.rules[:place]) if r.namespace in {"*", rule.namespace}
        }
        sooner = _sooner(rule, earlier, known)
        if sooner is not None:
            names = " and ".join(f"snat.rules[{n}]" for n in sooner)
            why = f"{names} decides wherever it would" if names else "it means nothing beyond it"
            yield Issue(subject, "RuleNeverMatches", f"{why}; remove it, or change the order")
        elif rule.identity != "node" and snat.mode == "node" and (public := _public(rule)):
            whose = "" if rule.identity == "pod" else " without an Elastic IP"
            why = (
                f"as {rule.identity} sends private addresses to {public}: an internet gateway "
                f"drops those{whose}, so no answer comes back unless the subnets' route tables "
                "lead there by a NAT or transit gateway"
            )
            yield Issue(subject, "NoWayBack", why)


class Known(NamedTuple):
    """What decides what a rule's destinations are."""

    egress: Egress
    vpc_cidrs: tuple[IpNetwork, ...]
    services: tuple[IpNetwork, ...]

    def ranges(self, rule: EgressRule) -> list[tuple[Range, ...]]:
        """Return the ranges of a rule's CIDRs, by family; sources are left out."""
        cidrs = tuple(n for n in rule.to if not isinstance(n, str))
        known = rule.model_copy(update={"to": cidrs})
        return [ranges_of(known, *self, family) for family in FAMILIES.values()]


def _sooner(rule: EgressRule, earlier: Mapping[int, EgressRule], known: Known) -> list[int] | None:
    """Return which earlier rules leave nothing to a later one; None if something is left.

    A source is covered by its own name alone: what is not known of it is no proof.
    """
    wanted = known.ranges(rule)
    given = {n: known.ranges(r) for n, r in earlier.items()}
    for at, mine in enumerate(wanted):
        together = unite(one for ranges in given.values() for one in ranges[at])
        if unite((*together, *mine)) != together:
            return None
    names = {n for n in rule.to if isinstance(n, str)}
    if not names <= {n for r in earlier.values() for n in r.to if isinstance(n, str)}:
        return None
    return [
        n
        for n, r in earlier.items()
        if names.intersection(x for x in r.to if isinstance(x, str))
        or any(_overlap(a, b) for a, b in zip(given[n], wanted, strict=True))
    ]


def _overlap(some: tuple[Range, ...], others: tuple[Range, ...]) -> bool:
    return any(find(some, first) or find(others, one) for first, _ in others for one, _ in some)


def _public(rule: EgressRule) -> str:
    """Name a destination of a rule that is, or has, what no private network has; "" if none."""
    cidrs = (n for n in rule.to if not isinstance(n, str) and n.version == IPV4.version)
    return next((str(n) for n in cidrs if not _is_inside(n, PRIVATE)), "")
