"""Taking a node over from amazon-vpc-cni-k8s while its pods run.

Three things in this order, each after the one before it was seen: its ENIs become ours in EC2
(``domains/eni.py``), its pods become attachments of ours, which builds everything of ours beside
everything of its; and only then does what is its go. Both lead every packet the same way, so it
does not matter to a connection which of the two it meets.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from reconciler.core.attachment import (
    Attachment,
    Intent,
    IntentState,
    netns_inode,
    netns_path,
)
from reconciler.core.datapath import MAIN_TABLE, IpAddress, IpNetwork, family_of, host_network
from reconciler.core.facts import Eni
from reconciler.core.predecessor import (
    CHAIN,
    CONNMARK_COMMENTS,
    ENI_TABLES,
    MARK,
    NFT_TABLE,
    OWNER,
    PROTOCOLS,
    TO_POD,
    VETH,
    IptablesChain,
    IptablesRule,
    Leftover,
    PodEnd,
    Predecessor,
    Sighting,
    StockRoute,
    StockRule,
    StockTable,
)
from reconciler.domains.inputs import Inputs
from reconciler.engine.finding import Finding
from reconciler.engine.plan import Change, Plan, Refusal, Verb
from reconciler.ipam.records import Records

SUBJECT = f"take-over from {OWNER}"


@dataclass(frozen=True, slots=True)
class Retirement:
    """What is needed to tell the stock plugin's objects, and whether they may go.

    Attributes:
        asked: the document asks for the take-over.
        refusals: why it is not done all the same.
        links: interface name by MAC.
    """

    asked: bool
    refusals: tuple[Refusal, ...]
    enis: tuple[Eni, ...]
    links: Mapping[str, str]


def desire(inputs: Inputs) -> Retirement:
    """Nothing of the stock plugin's, if the document says so."""
    return Retirement(
        asked=inputs.document.take_over == OWNER,
        refusals=inputs.predecessor.refusals,
        enis=inputs.enis,
        links=inputs.links,
    )


def plan(desired: Retirement, observed: Sighting) -> Plan:
    """Remove what is the stock plugin's, or say that it is there."""
    found = sorted(
        recognise(observed, desired.enis, desired.links),
        key=lambda o: (_ORDER.index(type(o)), o.key),
    )
    if not desired.asked:
        return Plan(foreign=tuple(found), findings=_findings(desired, observed, found))
    if desired.refusals:
        return Plan(refusals=desired.refusals, foreign=tuple(found))
    if found and observed.unlisted:
        return Plan(refusals=(_unlisted(observed.unlisted),), foreign=tuple(found))
    reason = "the stock plugin's; ours is in its place"
    hidden = {o: by for o in found if (by := _hidden_by(o, observed.rules, found))}
    return Plan(
        tuple(Change(Verb.DELETE, o, reason) for o in found if o not in hidden),
        tuple(_hidden(rule, by) for rule, by in hidden.items()),
    )


def consider(
    seen: Sighting,
    ends: Mapping[str, PodEnd],
    *,
    asked: bool,
    enis: Iterable[Eni],
    records: Records,
) -> Predecessor:
    """Say what becomes of the stock plugin's pods.

    Args:
        seen: the look.
        ends: other end by the name of the host's, for the links of ``unexplained`` routes.
        asked: the document asks for the take-over.
        enis: what EC2 last showed.
        records: intents and attachments.
    """
    routes = unexplained(seen, records)
    held = frozenset(r.destination.network_address for r in routes)
    if not asked:
        return Predecessor(held=held)
    if seen.running:
        return Predecessor(held=held, refusals=(_running(),))
    enis = tuple(enis)
    adoptions: list[tuple[Attachment, Intent]] = []
    refusals: list[Refusal] = []
    pending = False
    for route in routes:
        found = _adoption(route, seen, ends.get(route.device), enis)
        match found:
            case Refusal():
                refusals.append(found)
            case None:
                pending = True
            case _:
                adoptions.append(found)
    adoptions += _half_done(seen, records)
    if refusals or pending:
        adoptions = []  # all of them or none: nothing may go before the last one
    released = records.released
    wanted = tuple(a for a in adoptions if a[0].key not in released)
    return Predecessor(True, held, wanted, tuple(refusals))


def unexplained(seen: Sighting, records: Records) -> tuple[StockRoute, ...]:
    """Return routes to the stock plugin's pods that no attachment of ours explains."""
    known = {(a.veth, address) for a in records.attachments for address in a.addresses}
    return tuple(
        sorted(
            (
                r
                for r in pod_routes(seen)
                if (r.device, r.destination.network_address) not in known
            ),
            key=lambda r: r.key,
        )
    )


def recognise(
    seen: Sighting, enis: Iterable[Eni], links: Mapping[str, str]
) -> frozenset[Leftover]:
    """Return what is the stock plugin's of what was seen.

    Args:
        seen: the look.
        enis: what EC2 last showed.
        links: interface name by MAC.
    """
    ways = {
        e.device_index + 1: (links[e.mac], e.gateway)
        for e in enis
        if e.device_index and not e.is_primary and e.mac in links
    }
    found: set[Leftover] = {r for r in seen.rules if is_stock_rule(r)}
    found |= set(pod_routes(seen))
    found |= {r for r in seen.routes if r.table in ways and _is_way_out(r, *ways[r.table])}
    for (backend, table), lines in seen.saved.items():
        found |= set(_iptables(backend, table, lines))
    if NFT_TABLE in seen.tables:
        found.add(StockTable())
    return frozenset(found)


def is_stock_rule(rule: StockRule) -> bool:
    """Whether a rule has the exact shape of one that the stock plugin makes."""
    if rule.extra or rule.protocol not in PROTOCOLS:
        return False
    to, source, mark = rule.destination, rule.source, (rule.mark, rule.mask)
    plain, main = mark == (None, 0), rule.table == MAIN_TABLE
    match rule.priority:
        case 512:
            return plain and main and _is_host(to) and source is None
        case 1024:
            return mark == (MARK, MARK) and main and to is None and source is None
        case 1535:
            return plain and main and to is not None and source is None
        case 1536:
            # Older releases restricted it to each of the VPC's CIDRs.
            return plain and _is_host(source) and rule.table in ENI_TABLES
        case 32765:
            return plain and _is_host(source) and to is None and rule.table in ENI_TABLES
        case _:
            return False


def pod_routes(seen: Sighting) -> Iterator[StockRoute]:
    """Return the routes to the stock plugin's pods: in ``main``, each over the pod's own link.

    Known by the link's name, or, because its prefix can be chosen, by the rule for that address.
    """
    ruled = {r.destination for r in seen.rules if r.priority == TO_POD and is_stock_rule(r)}
    for route in seen.routes:
        plain = route.gateway is None and not route.metric and route.protocol in PROTOCOLS
        ours = VETH.fullmatch(route.device) or route.destination in ruled
        if plain and ours and route.table == MAIN_TABLE and _is_host(route.destination):
            yield route


def _hidden_by(
    one: Leftover, rules: Iterable[StockRule], found: Iterable[Leftover]
) -> StockRule | None:
    """Return the foreign rule that would go in the place of a rule of the stock plugin's.

    To delete one, the kernel takes the first rule in which every selector that is named agrees
    (net/core/fib_rules.c, rule_find): one that has more of them may come first.
    """
    if not isinstance(one, StockRule):
        return None
    place, named = (one.priority, one.table), _selectors(one)
    first = next(
        r
        for r in rules
        if (r.priority, r.table) == place
        and all(n in (None, has) for n, has in zip(named, _selectors(r), strict=True))
    )
    return None if first in found else first


def _selectors(rule: StockRule) -> tuple[object, ...]:
    """What is named when a rule is deleted; None for what is not."""
    mark = None if rule.mark is None else (rule.mark, rule.mask)
    return (rule.destination, rule.source, mark, rule.protocol or None)


def _is_way_out(route: StockRoute, device: str, gateway: IpAddress) -> bool:
    """Whether it is one of the two routes in a secondary ENI's table."""
    if route.device != device or route.metric or route.protocol not in PROTOCOLS:
        return False
    if route.gateway is None:
        return route.destination == host_network(gateway)
    return route.gateway == gateway and route.destination == family_of(gateway).everything


def _iptables(backend: str, table: str, lines: Iterable[str]) -> Iterator[Leftover]:
    """Return the stock plugin's chains, and its rules in chains of others."""
    copies: Counter[tuple[str, str]] = Counter()
    for line in lines:
        word, name, text = (*line.split(" ", 2), "", "")[:3]
        if word.startswith(":") and CHAIN.fullmatch(word[1:]):
            yield IptablesChain(backend, table, word[1:])
        elif word == "-A" and not CHAIN.fullmatch(name) and _is_stock_text(table, name, text):
            yield IptablesRule(backend, table, name, text, copies[name, text])
            copies[name, text] += 1


def _is_stock_text(table: str, chain: str, text: str) -> bool:
    """Whether a rule leads into a chain of the stock plugin's, or is one of its CONNMARKs."""
    try:
        words = shlex.split(text)
    except ValueError:
        return False  # quotes that the stock plugin does not write
    options = dict(pairwise(words))
    target = options.get("-j", "")
    if CHAIN.fullmatch(target):
        return True
    ours = options.get("--comment") in CONNMARK_COMMENTS.get(table, ())
    return chain == "PREROUTING" and target == "CONNMARK" and ours


def _is_host(network: IpNetwork | None) -> bool:
    return network is not None and network.num_addresses == 1


def _adoption(
    route: StockRoute, seen: Sighting, end: PodEnd | None, enis: tuple[Eni, ...]
) -> tuple[Attachment, Intent] | Refusal | None:
    """Return a pod as ours; None if it only waits for its ENI."""
    address = route.destination.network_address
    allocation = seen.allocations.get(address)
    eni = next((e for e in enis if address in e.pod_addresses), None)
    if allocation is None:
        why = seen.unread or "the stock plugin's checkpoint does not name it"
        return _unknown(route, f"{why}, so a DEL for it could not be told")
    if end is None:
        return _unknown(route, "its network namespace is neither in /run/netns nor a process's")
    if eni is None or not (eni.owned or eni.is_adoptable):
        where = f"{eni.eni_id} does not carry the stock plugin's tag" if eni else "no ENI has it"
        return _unknown(route, f"{where}, by EC2's word")
    if not eni.serves_pods:
        return None
    attachment = Attachment(
        key=allocation.key,
        netns=end.netns,
        addresses=(address,),
        eni_id=eni.eni_id,
        veth=route.device,
        pod=allocation.pod,
        kept_macs=(end.host_mac, end.mac),
        unfinished=True,  # its routes get our stamp, once
    )
    return attachment, _intent(attachment)


def _intent(attachment: Attachment) -> Intent:
    return Intent(
        key=attachment.key,
        state=IntentState.WANTED,
        netns=netns_path(attachment.netns),
        netns_inode=netns_inode(attachment.netns),
        pod=attachment.pod,
    )


def _half_done(seen: Sighting, records: Records) -> Iterator[tuple[Attachment, Intent]]:
    """Return pods whose attachment was recorded, but not what the runtime wants of it."""
    known = {i.key for i in records.intents}
    routes = {(r.device, r.destination.network_address) for r in pod_routes(seen)}
    for a in records.attachments:
        if a.key not in known and any((a.veth, own) in routes for own in a.addresses):
            yield a, _intent(a)


def _findings(
    desired: Retirement, seen: Sighting, found: Iterable[Leftover]
) -> tuple[Finding, ...]:
    tagged = [e.eni_id for e in desired.enis if e.is_adoptable]
    counts = Counter(_PLURALS[type(o)] for o in found)
    parts = [f"{count} {noun}" for noun, count in sorted(counts.items())]
    parts += [f"{len(tagged)} ENIs ({', '.join(tagged)})"] if tagged else []
    if not parts:
        return ()
    running = "; its daemon still runs: stop it first" if seen.running else ""
    return (
        Finding(
            subject=OWNER,
            reason="StockPluginPresent",
            message=f"left on this node: {', '.join(parts)}; they are not touched{running}; to "
            f"take over its pods and remove the rest, set takeOver: {OWNER}",
        ),
    )


_ORDER: tuple[type, ...] = (IptablesRule, IptablesChain, StockTable, StockRule, StockRoute)
"""A rule goes before the routes it leads to: one that says ``to 10.0.1.20 lookup main`` would
find the subnet there once the pod's own route is gone, and send the packet out of the node."""

_PLURALS: dict[type, str] = {
    StockRule: "ip rules",
    StockRoute: "routes",
    IptablesRule: "iptables rules",
    IptablesChain: "iptables chains",
    StockTable: "nftables tables",
}


def _running() -> Refusal:
    return Refusal(
        subject=SUBJECT,
        reason="StockPluginRunning",
        message="its daemon answers on its socket, and two owners of one node would fight; "
        "keep aws-node off this node (a node affinity of its DaemonSet), and it goes on by itself",
    )


def _hidden(rule: Leftover, by: StockRule) -> Refusal:
    return Refusal(
        subject=rule.command(Verb.DELETE),
        reason="RuleHidden",
        message=f"the kernel would delete somebody else's in its place: {by.command(Verb.CREATE)} "
        f"{by.extra}; remove that one first, or move it to another priority",
        about=(rule.kind, rule.key),
    )


def _unlisted(places: Mapping[tuple[str, str], str]) -> Refusal:
    what = "; ".join(
        f"table {table} of iptables-{backend} cannot be read: {why}"
        for (backend, table), why in sorted(places.items())
    )
    return Refusal(
        subject=SUBJECT,
        reason="IptablesUnreadable",
        message=f"{what}; the stock plugin's rules may be in it, so nothing is removed; install "
        "iptables beside the reconciler",
    )


def _unknown(route: StockRoute, why: str) -> Refusal:
    address = route.destination.network_address
    return Refusal(
        subject=f"pod {address} behind {route.device}",
        reason="StockPodUnknown",
        message=f"{why}; nothing of the stock plugin's is removed while it runs; restart that "
        "pod, and the take-over goes on by itself",
    )
