"""Which destinations see pods' own addresses: the document's CIDRs, and what its sources mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reconciler.core.datapath import FAMILIES, Family, IpAddress, IpNetwork, family_of
from reconciler.core.ranges import Range, coalesce, complement, find, print_range, unite
from reconciler.core.remembered import RememberedWhileAsked
from reconciler.egress.source import Entry, Source
from reconciler.errors import Issue
from schemas.snat import Snat, SnatPolicy

IPV4 = FAMILIES["ipv4"]
"""The only family that is translated."""

PREFIX_LISTS = ("DescribeManagedPrefixLists", "GetManagedPrefixListEntries")
"""EC2 actions that a prefix list needs."""

_ROUTES = ("DescribeRouteTables", *PREFIX_LISTS)

ACTIONS: Mapping[str, tuple[str, ...]] = {
    "@peering": ("DescribeVpcPeeringConnections",),
    "@routes": _ROUTES,
    "@transit": _ROUTES,
    "@onprem": _ROUTES,
}
"""The same of the other sources; a route may lead to a prefix list."""

MOST_NAMED = 3
"""Sources that are named of one range, and CIDRs of one source in a condition."""

SHRINKS = "SourceShrinks"
"""Reason of an issue that is none yet: a second look may not agree."""

BEYOND = 1 << 24
"""1.0.0.0, for any address of the internet."""


@dataclass(frozen=True, slots=True)
class Egress:
    """What is known of sources.

    Attributes:
        vpc_id: of the VPC that they are of; "" before it is known.
        sources: in the order of their names.
        former: what was excluded when all sources of the document were known last.
    """

    vpc_id: str = ""
    sources: tuple[Source, ...] = ()
    former: tuple[Range, ...] = ()

    @property
    def by_name(self) -> Mapping[str, Source]:
        return {s.name: s for s in self.sources}


NO_EGRESS = Egress()


def named(snat: SnatPolicy) -> tuple[str, ...]:
    """Return the sources that a document names, each once."""
    if snat.mode == "external":
        return ()
    both = (*snat.exclude_cidrs, *(snat.only_cidrs or ()))
    return tuple(dict.fromkeys(d for d in both if isinstance(d, str)))


def named_by_rules(snat: Snat) -> tuple[str, ...]:
    """Return the sources that a document's rules name, each once."""
    return tuple(dict.fromkeys(d for rule in snat.rules for d in rule.to if isinstance(d, str)))


def unknown(snat: SnatPolicy, egress: Egress) -> tuple[str, ...]:
    """Return those of a policy's that were never answered."""
    names = named(snat)
    if not names:
        return ()
    known = {s.name for s in egress.sources if s.is_known}
    return tuple(n for n in names if n not in known)


def networks(listed: Iterable[IpNetwork | str], egress: Egress) -> tuple[IpNetwork, ...]:
    """Return CIDRs with sources replaced by what they stand for."""
    listed = tuple(listed)
    if not any(isinstance(d, str) for d in listed):
        return listed  # type: ignore[return-value]  # there is no name among them
    sources = egress.by_name
    found: list[IpNetwork] = []
    for each in listed:
        if not isinstance(each, str):
            found.append(each)
        elif each in sources:
            found += [e.network for e in sources[each].entries]
    return tuple(found)


def untranslated(
    snat: SnatPolicy, egress: Egress, vpc_cidrs: tuple[IpNetwork, ...], family: Family
) -> tuple[Range, ...]:
    """Return the destinations that see pods' own addresses, coalesced.

    While a source that the document names was never answered, what was excluded before stays: who
    replaces a CIDR by a source that EC2 does not tell would cut partners off.
    """
    if snat.mode == "external" or not family.private:
        return coalesce([family.everything])
    kept = (*vpc_cidrs, *networks(snat.exclude_cidrs, egress))
    waits = bool(unknown(snat, egress))
    # Of an incomplete list, everything it lacks would see pods.
    only = None if snat.only_cidrs is None or waits else networks(snat.only_cidrs, egress)
    found = _untranslated(kept, only, family)
    return unite((*found, *egress.former)) if waits else found


@RememberedWhileAsked
def _untranslated(
    cidrs: tuple[IpNetwork, ...], only: tuple[IpNetwork, ...] | None, family: Family
) -> tuple[Range, ...]:
    """Return the ranges; remembered, because 10,000 take tenths of a second in each pass."""
    kept = coalesce(c for c in cidrs if c.version == family.version)
    if only is None:
        return kept
    chosen = coalesce(c for c in only if c.version == family.version)
    return unite((*kept, *complement(chosen, family.everything)))


def holder(listed: Iterable[IpNetwork | str], egress: Egress, address: IpAddress) -> str:
    """Name the CIDR of a list, or the source and its entry, that has an address; "" if none."""
    sources = egress.by_name
    for each in listed:
        if not isinstance(each, str):
            if each.version == address.version and address in each:
                return str(each)
        elif each in sources:
            for entry in sources[each].entries:
                if address.version == entry.network.version and address in entry.network:
                    return f"{describe(each, entry)} {entry.network}"
    return ""


def why_kept(
    snat: SnatPolicy, egress: Egress, vpc_cidrs: tuple[IpNetwork, ...], destination: IpAddress
) -> str:
    """Name the setting, CIDR or source by which a destination sees pods; "" if none."""
    family = family_of(destination)
    if not family.private:
        return f", {family.name} is never translated"
    if snat.mode == "external":
        return ", by snat.mode external"
    if cidr := holder(vpc_cidrs, egress, destination):
        return f", a CIDR of the VPC: {cidr}"
    if cidr := holder(snat.exclude_cidrs, egress, destination):
        return f", by snat.excludeCIDRs {cidr}"
    if names := unknown(snat, egress):
        return f", as before: EC2 has not told yet what {', '.join(names)} stands for"
    return ", beyond snat.onlyCIDRs" if snat.only_cidrs is not None else ""


def why_translated(snat: SnatPolicy, egress: Egress, destination: IpAddress) -> str:
    """Say why a destination sees the node."""
    cidr = holder(snat.only_cidrs or (), egress, destination)
    return f", by snat.onlyCIDRs {cidr}" if cidr else ", beyond the VPC and not excluded"


def describe(name: str, entry: Entry) -> str:
    """Name a source and what of it says so: ``@peering pcx-0a1b, "shared-services"``."""
    return " ".join(filter(None, (name, entry.origin)))


def reasons(snat: SnatPolicy, egress: Egress, ranges: tuple[Range, ...]) -> Mapping[Range, str]:
    """Say of which of these ranges a part is there because of an excluded source, and which."""
    return reasons_in(snat.exclude_cidrs, egress, ranges)


def reasons_in(
    listed: Iterable[IpNetwork | str], egress: Egress, ranges: tuple[Range, ...]
) -> Mapping[Range, str]:
    """Say of which of these ranges a part is there because of a source of a list, and which."""
    found: dict[Range, dict[str, None]] = {}
    sources = egress.by_name
    for name in listed:
        if not isinstance(name, str) or name not in sources:
            continue
        for entry in sources[name].entries:
            if range_ := find(ranges, entry.network.network_address):
                whole = print_range(*range_) == str(entry.network)
                text = describe(name, entry)
                said = text if whole else f"{text} {entry.network}"
                found.setdefault(range_, {})[said] = None
    return {r: "; ".join(_some(list(said))) for r, said in found.items()}


EXCLUDED = (
    "It stays excluded until a second observation agrees, a minute later; then new connections "
    "there carry the node's address. If that is wrong, restore it in EC2, or name the CIDR in the "
    "document"
)

RULED = (
    "snat.rules mean it until a second observation agrees, a minute later; then new connections "
    "there are as the next rule or policy says. If that is wrong, restore it in EC2, or name the "
    "CIDR in the document"
)


def find_issues(snat: SnatPolicy, egress: Egress, now: float) -> tuple[Issue, ...]:
    """Say what is wrong with the sources that a policy names; ``now``: since the epoch."""
    return _find_issues(named(snat), egress, now, EXCLUDED)


def find_issues_of_rules(snat: Snat, egress: Egress, now: float) -> tuple[Issue, ...]:
    """Say the same of those that rules name and no policy does."""
    names = [name for name in named_by_rules(snat) if name not in named(snat)]
    return _find_issues(names, egress, now, RULED)


def _find_issues(
    names: Iterable[str], egress: Egress, now: float, meaning: str
) -> tuple[Issue, ...]:
    sources = egress.by_name
    found: list[Issue] = []
    for name in names:
        source = sources.get(name, Source(name))
        subject = f"snat source {name}"
        if source.failure is not None:
            found.append(Issue(subject, source.failure.code, _why(source, now)))
        elif not source.is_known:
            why = f"EC2 has not told what it stands for yet; {_meanwhile(source, now)}"
            found.append(Issue(subject, "SourceUnknown", why))
        if missed := source.missed:
            gone = ", ".join(_some([f"{e.network} {e.origin}".strip() for e in missed]))
            found.append(
                Issue(
                    subject,
                    SHRINKS,
                    f"EC2 no longer shows {gone}. {meaning}",
                )
            )
    return tuple(found)


def find_warnings(
    snat: SnatPolicy,
    egress: Egress,
    vpc_cidrs: tuple[IpNetwork, ...],
    service_cidrs: Iterable[IpNetwork],
) -> tuple[Issue, ...]:
    """Say where what is excluded is more than anybody means.

    The services' range is what the document says of it.
    """
    family = IPV4
    if snat.mode == "external":
        return ()
    kept = untranslated(snat, egress, vpc_cidrs, family)
    if kept == coalesce([family.everything]):
        culprit = holder(snat.exclude_cidrs, egress, family.everything[BEYOND])
        why = (
            f"every destination sees pods' own addresses, the internet too"
            f"{', because of ' + culprit if culprit else ''}; without a NAT gateway nothing "
            "answers them. If that is meant, write snat.mode external"
        )
        return (Issue("snat", "ExcludesEverything", why),)
    found = []
    for cidr in service_cidrs:
        first = cidr.network_address
        if cidr.version == family.version and (range_ := find(kept, first)):
            culprit = holder(snat.exclude_cidrs, egress, first) or print_range(*range_)
            why = (
                f"routing.externalServiceCIDRs {cidr} is excluded from SNAT by {culprit}: what "
                "handles services on this node then sees pods' addresses, and answers may "
                "bypass it"
            )
            found.append(Issue(f"snat {cidr}", "ExcludesServices", why))
    return tuple(found)


def _why(source: Source, now: float) -> str:
    failure = source.failure
    assert failure is not None
    return f"{failure.action + ': ' if failure.action else ''}{failure.message}; " + _meanwhile(
        source, now
    )


def _meanwhile(source: Source, now: float) -> str:
    if source.looked_at is None:
        return "what was excluded before it was named stays, and nothing else"
    age = max(now - source.looked_at, 0.0)
    count = len(source.entries)
    return f"the last good value stays, {count} CIDRs of {age:.0f} s ago"


def _some(texts: list[str]) -> list[str]:
    more = len(texts) - MOST_NAMED
    return [*texts[:MOST_NAMED], *([f"{more} more"] if more > 0 else [])]
