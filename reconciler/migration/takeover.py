"""Taking a node over from amazon-vpc-cni-k8s while its pods run.

Three things in this order, each after the one before it was seen: its ENIs become ours in EC2
(``domains/eni.py``), its pods become attachments of ours, which builds everything of ours beside
everything of its; and only then does what is its go. Both lead every packet the same way, so it
does not matter to a connection which of the two it meets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from reconciler.core.attachment import Attachment, Intent, IntentState, netns_inode, netns_path
from reconciler.core.facts import Eni
from reconciler.diagnostics.stock_objects import (
    OWNER,
    Leftover,
    PodEnd,
    Sighting,
    StockRoute,
    StockRule,
)
from reconciler.diagnostics.stock_plugin import in_order, pod_routes, recognise, unexplained
from reconciler.domains.inputs import Inputs, Predecessor
from reconciler.engine.plan import Change, Plan, Verb
from reconciler.errors import Issue
from reconciler.ipam.records import Records

SUBJECT = f"take-over from {OWNER}"


@dataclass(frozen=True, slots=True)
class Retirement:
    """What is needed to recognise the stock plugin's objects; and why they may not go, if so."""

    refusals: tuple[Issue, ...]
    enis: tuple[Eni, ...]
    links: Mapping[str, str]


def desire(inputs: Inputs) -> Retirement:
    """Nothing of the stock plugin's."""
    return Retirement(inputs.host.predecessor.refusals, inputs.enis, inputs.links)


def plan(desired: Retirement, observed: Sighting) -> Plan:
    """Remove what is the stock plugin's."""
    found = in_order(recognise(observed, desired.enis, desired.links))
    if desired.refusals:
        return Plan(refusals=desired.refusals, foreign=found)
    if found and observed.unlisted:
        return Plan(refusals=(_unlisted(observed.unlisted),), foreign=found)
    reason = "the stock plugin's; ours is in its place"
    hidden = {o: by for o in found if (by := _hidden_by(o, observed.rules, found))}
    return Plan(
        tuple(Change(Verb.DELETE, o, reason) for o in found if o not in hidden),
        tuple(_hidden(rule, by) for rule, by in hidden.items()),
    )


def consider(
    seen: Sighting, ends: Mapping[str, PodEnd], *, enis: Iterable[Eni], records: Records
) -> Predecessor:
    """Say what becomes of the stock plugin's pods.

    ``ends`` has the other end by the name of the host's, for the links of ``unexplained`` routes.
    """
    routes = unexplained(seen, records)
    held = frozenset(r.destination.network_address for r in routes)
    if seen.running:
        why = (
            "its daemon answers on its socket, and two owners of one node would fight; keep "
            "aws-node off this node (a node affinity of its DaemonSet), and it goes on by itself"
        )
        return Predecessor(held=held, refusals=(Issue(SUBJECT, "StockPluginRunning", why),))
    enis = tuple(enis)
    adoptions: list[tuple[Attachment, Intent]] = []
    refusals: list[Issue] = []
    pending = False
    for route in routes:
        match _adoption(route, seen, ends.get(route.device), enis):
            case Issue() as refusal:
                refusals.append(refusal)
            case None:
                pending = True
            case adoption:
                adoptions.append(adoption)
    adoptions += _half_done(seen, records)
    if refusals or pending:
        adoptions = []  # all of them or none: nothing may go before the last one
    released = records.released
    wanted = tuple(a for a in adoptions if a[0].key not in released)
    return Predecessor(True, held, wanted, tuple(refusals))


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


def _adoption(
    route: StockRoute, seen: Sighting, end: PodEnd | None, enis: tuple[Eni, ...]
) -> tuple[Attachment, Intent] | Issue | None:
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


def _hidden(rule: Leftover, by: StockRule) -> Issue:
    why = (
        f"the kernel would delete another owner's rule in its place: {by.command(Verb.CREATE)} "
        f"{by.extra}; remove that one first, or move it to another priority"
    )
    return Issue(rule.command(Verb.DELETE), "RuleHidden", why, (rule.kind, rule.key))


def _unlisted(places: Mapping[tuple[str, str], str]) -> Issue:
    what = "; ".join(
        f"table {table} of iptables-{backend} cannot be read: {why}"
        for (backend, table), why in sorted(places.items())
    )
    why = (
        f"{what}; the stock plugin's rules may be in it, so nothing is removed; install iptables "
        "beside the reconciler"
    )
    return Issue(SUBJECT, "IptablesUnreadable", why)


def _unknown(route: StockRoute, why: str) -> Issue:
    subject = f"pod {route.destination.network_address} behind {route.device}"
    advice = (
        f"{why}; nothing of the stock plugin's is removed while it runs; restart that pod, and "
        "the take-over goes on by itself"
    )
    return Issue(subject, "StockPodUnknown", advice)
