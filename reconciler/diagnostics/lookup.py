"""Looking a packet up in rules, routes and sets, desired or observed, as the kernel does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from reconciler.core.datapath import LOCAL_TABLE, MAIN_TABLE, IpAddress, family_of
from reconciler.core.ranges import Range, find, unite
from reconciler.domains.nat_groups import MARK
from reconciler.domains.nat_identities import from_of, to_of
from reconciler.domains.nat_objects import NftElement, NftLink, NftObject
from reconciler.domains.nat_rules import no_snat_of, sets_of
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from schemas.snat import MAX_RULES


@dataclass(frozen=True, slots=True)
class Packet:
    """What a route is looked up for; the host's own has no link, and may have no source yet."""

    source: IpAddress | None
    destination: IpAddress
    link: str = ""
    mark: int = 0

    @property
    def command(self) -> str:
        """The command that asks the kernel."""
        source = f" from {self.source}" if self.source else ""
        link = f" iif {self.link}" if self.link else ""
        mark = f" mark {self.mark:#x}" if self.mark else ""
        return f"ip route get {self.destination}{source}{link}{mark}"


@dataclass(frozen=True, slots=True)
class Found:
    """The kernel's answer.

    Attributes:
        table: the table that answered, 0 if there is no way.
        device: the link it leads to, "lo" for an address of the host.
        refusal: why there is no way, in the kernel's words; "" if there is one.
    """

    table: int
    device: str
    gateway: IpAddress | None = None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The rule that led to a route, if one did; and the route, if it is no host's address."""

    rule: Rule | None
    route: Route | None

    @property
    def device(self) -> str:
        """The link it leaves by; "lo" for what stays with the host."""
        return self.route.device if self.route else "lo" if self.rule else ""

    def __str__(self) -> str:
        if self.rule is None:
            return "no rule leads to a route"
        mark = "" if self.rule.mark is None else f" fwmark {self.rule.mark:#x}/{self.rule.mask:#x}"
        source = f" from {self.rule.source}" if self.rule.source else ""
        names = {LOCAL_TABLE: "local", MAIN_TABLE: "main"}
        table = names.get(self.rule.table, self.rule.table)
        rule = f"rule {self.rule.priority}:{source}{mark} lookup {table}"
        if self.route is None:
            return f"{rule}; an address of this host"
        via = f" via {self.route.gateway}" if self.route.gateway else ""
        everything = self.route.destination.prefixlen == 0
        destination = "default" if everything else self.route.destination
        return f"{rule}; route {destination}{via} dev {self.route.device}"


@dataclass(frozen=True, slots=True)
class Tables:
    """What is walked: desired objects, or observed ones.

    Attributes:
        rules: every rule of the host, foreign ones too.
        routes: every unicast route of the host, foreign ones too.
        addresses: the host's own.
        ranges: elements of our sets, by set.
        verdicts: of our maps' elements, by map and address.
        values: of our maps to addresses, likewise.
        links: by a link and an address that may come from there, the chain of its ENI; by a link
            alone, the chain for what else does.
    """

    rules: tuple[Rule, ...]
    routes: tuple[Route, ...]
    addresses: frozenset[IpAddress]
    ranges: Mapping[str, tuple[Range, ...]] = field(default_factory=dict)
    verdicts: Mapping[tuple[str, IpAddress], str] = field(default_factory=dict)
    links: Mapping[tuple[str, IpAddress | None], str] = field(default_factory=dict)
    values: Mapping[tuple[str, IpAddress], IpAddress] = field(default_factory=dict)

    def look_up(self, packet: Packet) -> Decision:
        """Walk the rules in order, and in each table the longest prefix with the least metric."""
        family = family_of(packet.destination).name
        for rule in self.rules:
            if rule.family != family or not _matches(rule, packet):
                continue
            if rule.table == LOCAL_TABLE:
                if packet.destination in self.addresses:
                    return Decision(rule, None)
                continue
            # An address of one version is in no network of the other.
            routes = [
                r
                for r in self.routes
                if r.table == rule.table and packet.destination in r.destination
            ]
            if routes:
                best = min(routes, key=lambda r: (-r.destination.prefixlen, r.metric))
                return Decision(rule, best)
        return Decision(None, None)

    def range_of(self, name: str, address: IpAddress) -> Range | None:
        """Return the element of a set that holds an address."""
        return find(self.ranges.get(name, ()), address)

    def rule_for(self, source: IpAddress, destination: IpAddress) -> int | None:
        """Return the place of the document's rule that decides about a pod's connection."""
        family = family_of(source)
        return next(
            (
                place
                for place in range(MAX_RULES)
                if self.range_of(from_of(place, family), source)
                and self.range_of(to_of(place, family), destination)
            ),
            None,
        )

    def kept(self, source: IpAddress, destination: IpAddress) -> tuple[str, Range | None]:
        """Return the pod group whose policy counts for a pod, and the range of what it keeps.

        The range is None if the destination sees the node; the group is "" if it is none.
        """
        family = family_of(source)
        chain = self.verdicts.get((sets_of(family).group_mark, source), "")
        group = chain.removeprefix(MARK)
        return group, self.range_of(no_snat_of(family, group), destination)


def make_tables(
    rules: Iterable[Rule],
    routes: Iterable[Route],
    nft: Iterable[NftObject],
    addresses: Iterable[IpAddress],
) -> Tables:
    """Order and index what is to be walked."""
    ranges: dict[str, list[Range]] = {}
    verdicts: dict[tuple[str, IpAddress], str] = {}
    links: dict[tuple[str, IpAddress | None], str] = {}
    values: dict[tuple[str, IpAddress], IpAddress] = {}
    for element in nft:
        if isinstance(element, NftElement):
            if element.value:
                values[element.set, element.first] = element.value
            ranges.setdefault(element.set, []).append((element.first, element.last))
            verdicts[element.set, element.first] = element.goto
        if isinstance(element, NftLink):
            links[element.link, element.address] = element.goto
    return Tables(
        tuple(sorted(rules, key=lambda r: r.key)),
        tuple(r for r in routes if not r.netns),
        frozenset(addresses),
        {name: unite(r) for name, r in ranges.items()},
        verdicts,
        links,
        values,
    )


def _matches(rule: Rule, packet: Packet) -> bool:
    """Whether a rule's selectors hold; those we do not know are left to the kernel's answer."""
    if rule.extra:
        return False
    if rule.mark is not None and packet.mark & rule.mask != rule.mark:
        return False
    return rule.source is None or (packet.source is not None and packet.source in rule.source)
