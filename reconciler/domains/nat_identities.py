"""The part of our table that is of the document's rules: whose address which namespaces have.

A first packet of a pod that any rule is for is compared with each rule in order; that of another
pod costs one lookup. It is compared twice: ahead of routing it is decided by which ENI it goes,
and whether it goes at all (``ruled``), and behind routing as whom (``ruled_nat``). The number of
chains and rules depends on the document's rules and on ENIs; pods and namespaces are elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reconciler.core.attachment import Attachment
from reconciler.core.datapath import FAMILIES, Family, Marks, family_of
from reconciler.core.facts import Eni
from reconciler.core.ranges import Range
from reconciler.core.remembered import RememberedWhileAsked
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_objects import (
    NftChain,
    NftCounter,
    NftElement,
    NftObject,
    NftSet,
)
from reconciler.domains.nat_rules import (
    CONNECTION_MARK,
    TO,
    WAY,
    Expression,
    Rules,
    become,
    match,
    payload,
    set_mark,
    texts,
    without_mark,
)
from reconciler.egress.destinations import reasons_in
from reconciler.egress.rules import ranges_of, versions
from reconciler.ipam.identity import EgressIdentity, owner_of, rules_of
from schemas.document import NodeNetwork
from schemas.snat import MAX_RULES

FIRST, NAT = "ruled", "ruled_nat"
"""Chains in which a first packet is compared with each rule."""

DEDICATED, DEDICATED_NAT = "dedicated", "dedicated_nat"
"""Chains for what a rule sends by a dedicated address."""

NO_WAY = "no_way"
"""The chain for what has no address to leave by: refused if it would leave."""

NODE_NAT = "node_nat"
"""The chain for what a rule sends by the node's address."""

NO_IDENTITY = "no_identity"
"""The chain that refuses a packet so that a client gives up at once."""

UNIDENTIFIED = "unidentified"
"""Counts that."""

BIND = "bind_"
"""How the names of chains begin that bind a connection to an ENI."""

RETURN: Expression = {"return": None}
"""Go on with the choice of the ENI: no policy is asked any more."""

ACCEPT: Expression = {"accept": None}
"""Leave the chains of this hook and priority, likewise."""


@dataclass(frozen=True, slots=True)
class RuledSets:
    """Names of one family's sets.

    ``ruled``: addresses of pods that some rule is for. ``dedicated``: a map from a pod's address
    to its namespace's. ``dedicated_eni``: a verdict map from a pod's address to the chain that
    binds to the ENI of that one.
    """

    ruled: str
    dedicated: str
    dedicated_eni: str


SETS = {
    name: RuledSets(*(f"{noun}_{name}" for noun in ("ruled", "dedicated", "dedicated_eni")))
    for name in FAMILIES
}
"""By family."""


FROM = "from_"
"""How the names of sets of pods begin that rules are for."""


def from_of(place: int, family: Family) -> str:
    """Name the set of pods that a rule is for."""
    return f"{FROM}{place}_{family.name}"


def to_of(place: int, family: Family) -> str:
    """Name the set of a rule's destinations."""
    return f"{TO}{place}_{family.name}"


OF_PODS = frozenset(
    {name for s in SETS.values() for name in (s.ruled, s.dedicated, s.dedicated_eni)}
    | {from_of(n, f) for n in range(MAX_RULES) for f in FAMILIES.values()}
)
"""Those of which each element is one pod's."""


def families_of(document: NodeNetwork, families: Sequence[Family]) -> list[Family]:
    """Return the families that some rule is about."""
    named = frozenset[int]().union(*map(versions, document.snat.rules))
    return [f for f in families if f.version in named]


def lead(document: NodeNetwork, families: Sequence[Family], how: str, chain: str) -> Rules:
    """Lead pods that some rule is for to a chain (``how``: jump or goto), before all policies."""
    return [
        [match(payload(f, "saddr"), f"@{SETS[f.name].ruled}"), {how: {"target": chain}}]
        for f in families_of(document, families)
    ]


def desire(
    inputs: Inputs,
    families: Sequence[Family],
    primary: Eni,
    links: Mapping[int, str],
    marks: Marks,
    policy: Rules,
) -> Iterator[NftObject]:
    """Yield the rules' sets, maps and chains; none without rules.

    ``links``: by device index. ``policy``: what is asked ahead of routing of what no rule matches.
    """
    document = inputs.document
    if not (families := families_of(document, families)):
        return
    yield NftCounter(UNIDENTIFIED)
    for family in families:
        yield from _sets(family)
    for place, rule in enumerate(document.snat.rules):
        for family in (f for f in families if f.version in versions(rule)):
            yield NftSet(from_of(place, family), family.nft_type)
            name = to_of(place, family)
            yield NftSet(name, family.nft_type, interval=True)
            services = document.routing.external_service_cidrs
            egress, vpc = inputs.host.egress, inputs.node.vpc_cidrs
            ranges = ranges_of(rule, egress, vpc, services, family)
            why = tuple(reasons_in(rule.to, egress, ranges).items())
            yield from RANGES(name, ranges, why)
    to_primary = set_mark(CONNECTION_MARK, 0, marks)
    no_way: Expression = {"goto": {"target": NO_WAY}}
    has_host = {f.name: primary.host_address(f.version) is not None for f in families}
    by_node = {f.name: [to_primary, RETURN] if has_host[f.name] else [no_way] for f in families}
    walks: dict[str, dict[str, Mapping[str, list[Expression]]]] = {
        FIRST: {
            "pod": _all(families, RETURN),
            "node": by_node,
            "dedicated": _all(families, {"goto": {"target": DEDICATED}}),
        },
        NAT: {
            "pod": _all(families, ACCEPT),
            "node": _all(families, {"goto": {"target": NODE_NAT}}),
            "dedicated": _all(families, {"goto": {"target": DEDICATED_NAT}}),
        },
    }
    ports = document.snat.ports
    yield NftChain(FIRST, texts([*_walk(document, families, walks[FIRST]), *policy]))
    yield NftChain(NAT, texts(_walk(document, families, walks[NAT])))
    yield NftChain(DEDICATED, texts([*_by_pod(families), [no_way]]))
    yield NftChain(DEDICATED_NAT, texts(_to_dedicated(families, links.values(), ports)))
    yield NftChain(NODE_NAT, texts(_to_node(families, links[0], primary, ports)))
    leaving = [[match(WAY, link), {"goto": {"target": NO_IDENTITY}}] for link in links.values()]
    yield NftChain(NO_WAY, texts(without_mark(sorted(leaving, key=str), marks)))
    yield NftChain(NO_IDENTITY, texts(_refuse()))
    for device in links:
        bound = [[set_mark(CONNECTION_MARK, device, marks)]]
        yield NftChain(f"{BIND}{device}", texts(bound))


def _all(families: Iterable[Family], *statements: Expression) -> dict[str, list[Expression]]:
    return {f.name: [*statements] for f in families}


def _sets(family: Family) -> Iterator[NftSet]:
    sets = SETS[family.name]
    yield NftSet(sets.ruled, family.nft_type)
    yield NftSet(sets.dedicated, family.nft_type, values=True)
    yield NftSet(sets.dedicated_eni, family.nft_type, verdicts=True)


def _walk(
    document: NodeNetwork,
    families: Sequence[Family],
    verdicts: Mapping[str, Mapping[str, list[Expression]]],
) -> Rules:
    """Compare with each rule in order; ``verdicts``: by the rule's word, and by family."""
    return [
        [
            match(payload(family, "saddr"), f"@{from_of(place, family)}"),
            match(payload(family, "daddr"), f"@{to_of(place, family)}"),
            *verdicts[rule.identity][family.name],
        ]
        for place, rule in enumerate(document.snat.rules)
        for family in families
        if family.version in versions(rule)
    ]


def _by_pod(families: Iterable[Family]) -> Rules:
    """Bind to the ENI of the dedicated address, if the pod's namespace has one."""
    return [
        [{"vmap": {"key": payload(f, "saddr"), "data": f"@{SETS[f.name].dedicated_eni}"}}]
        for f in families
    ]


def _to_dedicated(families: Iterable[Family], links: Iterable[str], ports: str) -> Rules:
    """Give what leaves by an ENI the dedicated address; without one it does not leave."""
    found: Rules = []
    for link in sorted(links):
        leaves = match({"meta": {"key": "oifname"}}, link)
        for family in families:
            key = payload(family, "saddr")
            own: Expression = {"map": {"key": key, "data": f"@{SETS[family.name].dedicated}"}}
            found.append([leaves, become(family, own, ports)])
        found.append([leaves, {"drop": None}])
    return found


def _to_node(families: Iterable[Family], link: str, primary: Eni, ports: str) -> Rules:
    leaves = match({"meta": {"key": "oifname"}}, link)
    hosts = ((f, primary.host_address(f.version)) for f in families)
    return [[leaves, become(f, str(own), ports)] for f, own in hosts if own]


def _refuse() -> Rules:
    """Refuse it so that a client gives up at once, as ``nat_guard.no_metadata``."""
    return [
        [
            match({"meta": {"key": "l4proto"}}, "tcp"),
            {"counter": UNIDENTIFIED},
            {"reject": {"type": "tcp reset"}},
        ],
        [{"counter": UNIDENTIFIED}, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}],
    ]


def desire_pods(inputs: Inputs) -> Iterator[NftElement]:
    """Yield what leads pods to the rules that are for them, and to their namespaces' addresses."""
    document = inputs.document
    if not document.snat.rules:
        return
    usable = usable_identities(inputs)
    for pod in inputs.placed:
        if places := rules_of(pod.pod, document.snat.rules):
            yield from _of_pod(pod, places, document, usable)


def usable_identities(inputs: Inputs) -> dict[object, tuple[EgressIdentity, int]]:
    """Return by owner the identities whose ENI is here and holds them, with its device index."""
    enis = [eni for eni, _ in inputs.pod_enis]
    devices = {e.eni_id: e.device_index or 0 for e in enis}
    return {i.owner: (i, devices[i.eni_id]) for i in inputs.ec2.identities if i.is_held_by(enis)}


def _of_pod(
    pod: Attachment,
    places: Iterable[int],
    document: NodeNetwork,
    usable: Mapping[object, tuple[EgressIdentity, int]],
) -> Iterator[NftElement]:
    rules = document.snat.rules
    identity, device = usable.get(owner_of(pod.pod, document), (None, 0))
    for own in pod.vpc_addresses:
        family = family_of(own)
        about = [n for n in places if own.version in versions(rules[n])]
        if not about:
            continue
        sets = SETS[family.name]
        yield NftElement(sets.ruled, own, own)
        for place in about:
            yield NftElement(from_of(place, family), own, own)
        if not any(rules[n].identity == "dedicated" for n in about):
            continue
        if identity is not None and (address := identity.of_version(own.version)):
            yield NftElement(sets.dedicated, own, own, value=address)
            yield NftElement(sets.dedicated_eni, own, own, f"{BIND}{device}")


def _ranges(
    name: str, ranges: tuple[Range, ...], why: tuple[tuple[Range, str], ...]
) -> frozenset[NftElement]:
    because = dict(why)
    return frozenset(NftElement(name, *range_, why=because.get(range_, "")) for range_ in ranges)


RANGES = RememberedWhileAsked(_ranges)
"""Those in force: what is the same is compared with no look."""
