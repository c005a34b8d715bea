"""NAT and marks: the one nftables table, as values.

Static rules, dynamic sets: the number of rules depends on ENIs and families, never on pods or
CIDRs. A rule is the text of its expressions in libnftables' JSON, in the very form in which the
kernel lists it, so that observed and desired rules compare as values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

from reconciler.core.datapath import (
    FAMILIES,
    Family,
    IpNetwork,
    Marks,
    family_of,
    host_network,
    is_node_local,
)
from reconciler.core.ranges import Range, coalesce
from reconciler.core.remembered import RememberedWhileAsked
from reconciler.domains import nat_groups as groups
from reconciler.domains import nat_guard as guard
from reconciler.domains import nat_identities as identities
from reconciler.domains import nat_rules as rules
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_objects import (
    NftChain,
    NftCounter,
    NftElement,
    NftLink,
    NftObject,
    NftSet,
    NftTable,
)
from reconciler.domains.nat_rules import LINKS, arrival_of, chain_of, sets_of, texts
from reconciler.domains.snat import reasons, untranslated
from reconciler.engine.plan import Change, Plan, Verb, compare, merge
from reconciler.errors import NotReadyError

ARRIVAL_PRIORITY = -150
"""``mangle``: before DNAT, so that "local address" still means the address the client used."""

ROUTE_MARK_PRIORITY = -89
"""After DNAT (-100), so that a service address has become the address of its endpoint."""

SOURCE_NAT_PRIORITY = 100
"""``srcnat``, in postrouting."""

SENT_PRIORITY = -10
"""Before ``filter``, where others may drop what they do not know and tell the client nothing."""


def desire(inputs: Inputs) -> frozenset[NftObject]:
    """Compile the table.

    Raises:
        NotReadyError: the primary ENI's link is not known yet.
    """
    primary = inputs.primary
    link = inputs.links.get(inputs.node.primary_mac)
    if primary is None or link is None:
        raise NotReadyError(f"no link has the primary ENI's MAC {inputs.node.primary_mac}")
    families = [FAMILIES[name] for name in inputs.families]
    marks = Marks(inputs.document.routing.mark_mask)
    links = {0: link} | {e.device_index or 0: name for e, name in inputs.pod_enis}
    grouped = groups.translated(inputs.document, families)
    ports = inputs.document.snat.ports
    local = inputs.local_families
    ruled = identities.lead(inputs.document, families, "jump", identities.NAT)
    snat = rules.source_nat(families, link, primary, local, ports, grouped, ruled)
    ruled = identities.lead(inputs.document, families, "goto", identities.FIRST)
    by_main = _by_main(inputs, families)
    metadata = guard.to_metadata(families) if inputs.document.pods.metadata else []
    is_guarded = inputs.document.pods.spoofing == "deny"
    held = rules.held(links.values(), is_routed=False)
    objects: set[NftObject] = {
        NftTable(),
        _base_chain("arrival", rules.arrival(families), ARRIVAL_PRIORITY, kind="nat"),
        _base_chain(
            "route_mark",
            rules.route_mark(marks, is_plain=is_guarded and not by_main),
            ROUTE_MARK_PRIORITY,
        ),
        _base_chain("sent", rules.sent(families), SENT_PRIORITY, "output"),
        _base_chain("source_nat", snat, SOURCE_NAT_PRIORITY, "postrouting", "nat"),
        NftChain(rules.FIRST, texts(rules.first(families, metadata, marks, grouped, ruled))),
        NftChain(rules.CHOICE, texts(rules.choice(by_main, marks, is_guarded=is_guarded))),
        NftChain(rules.OWN, texts(rules.own(families))),
        NftChain(rules.BOUND, texts(rules.bound(sorted(links), marks))),
        NftChain(rules.HELD, texts(rules.without_mark(held, marks))),
        NftChain(rules.HELD_SENT, texts(rules.held(links.values(), is_routed=True))),
        NftChain(rules.REFUSE, texts(rules.refuse(links.values()))),
        NftSet(rules.ARRIVALS, "ifname", verdicts=True),
    }
    for index, name in links.items():
        objects |= {
            NftChain(chain_of(index), texts(rules.eni(index, marks))),
            NftChain(arrival_of(index), texts(rules.arrived(index, marks))),
            NftLink(rules.ARRIVALS, name, goto=arrival_of(index)),
        }
    objects |= set(groups.desire(inputs, families, primary, marks))
    policy = rules.mark_by_policy(families, marks, grouped)
    objects |= set(identities.desire(inputs, families, primary, links, marks, policy))
    if is_guarded:
        objects |= _guard(families)
        objects |= {NftLink(LINKS, name, goto=guard.FROM_ENI) for name in links.values()}
    if inputs.document.pods.metadata:
        objects |= {
            NftCounter(guard.METADATA),
            NftChain(guard.NO_METADATA, texts(guard.no_metadata())),
            *(NftSet(sets_of(f).no_metadata, f.nft_type) for f in families),
        }
    for family in families:
        objects |= _family_sets(family)
        objects |= _cidrs(inputs, family)
        objects |= HELD(_held(inputs), family)
    return frozenset(objects | desire_pods(inputs))


def _by_main(inputs: Inputs, families: Sequence[Family]) -> list[Family]:
    cidrs = inputs.document.routing.external_service_cidrs
    return [f for f in families if any(c.version == f.version for c in cidrs)]


def _guard(families: Sequence[Family]) -> set[NftObject]:
    return {
        *map(NftCounter, (guard.SPOOFED, guard.MARTIAN)),
        NftSet(LINKS, "ifname", verdicts=True),
        *(NftSet(sets_of(f).guarded, f"ifname . {f.nft_type}", verdicts=True) for f in families),
        _base_chain(guard.GUARD, guard.guard(families), guard.GUARD_PRIORITY),
        NftChain(guard.FROM_POD, texts(guard.from_pod())),
        NftChain(guard.FROM_ENI, texts(guard.from_eni())),
        NftChain(guard.NO_SOURCE, texts(guard.no_source())),
    }


def _base_chain(
    name: str,
    its_rules: rules.Rules,
    priority: int,
    hook: str = "prerouting",
    kind: str = "filter",
) -> NftChain:
    return NftChain(name, texts(its_rules), kind, hook, priority)


def desire_pods(inputs: Inputs) -> frozenset[NftElement | NftLink]:
    """The pods' part of it: elements of sets."""
    # A verdict may only name a chain that exists; a pod whose ENI is gone has no way out.
    primary = {e.eni_id: 0 for e in inputs.enis if e.is_primary}
    devices = {"": 0} | primary | {e.eni_id: e.device_index or 0 for e, _ in inputs.pod_enis}
    elements: set[NftElement | NftLink] = {
        *groups.desire_pods(inputs),
        *identities.desire_pods(inputs),
    }
    is_guarded = inputs.document.pods.spoofing == "deny"
    for a in inputs.placed:
        if is_guarded:
            elements.add(NftLink(LINKS, a.veth, goto=guard.FROM_POD))
        if guard.is_denied_metadata(a.pod, inputs.document.pods.metadata):
            elements |= {NftElement(sets_of(family_of(o)).no_metadata, o, o) for o in a.addresses}
    for a, own in ((pod, own) for pod in inputs.placed for own in pod.addresses):
        sets = sets_of(family_of(own))
        # One that is good on this node only: for the primary, whatever ENI the others are of.
        device = 0 if is_node_local(own) else devices.get(a.eni_id)
        if device is not None:
            elements.add(NftElement(sets.pod_eni, own, own, chain_of(device)))
        if not is_node_local(own):
            elements.add(NftElement(sets.pods, own, own))
        if is_guarded:
            way = rules.OWN if device is None else chain_of(device)
            elements.add(NftLink(sets.guarded, a.veth, own, goto=way))
    return frozenset(elements)


def plan(desired: Iterable[NftObject], observed: Iterable[NftObject]) -> Plan:
    """Compare; what cannot be changed in place takes a new table, in the same transaction.

    Everything in the table is ours: the table is. A set's type and a chain's hook are fixed for
    life, and a set that rules use cannot be deleted, so a wrong one means starting over.
    """
    desired, observed = frozenset(desired), frozenset(observed)
    if not desired and (table := next((o for o in observed if isinstance(o, NftTable)), None)):
        return Plan((Change(Verb.DELETE, table, "not desired, with all that is in it"),))
    missing, others = desired - observed, observed - desired
    have = {(o.kind, o.key): o for o in others}
    for want in missing:
        existing = have.get((want.kind, want.key))
        if existing is not None and _shape(existing) != _shape(want):
            remove = Change(Verb.DELETE, NftTable(), f"{want.key[0]} has another shape")
            return Plan((remove,)) + _compare(desired, ())
    return _compare(missing, others)


def _compare(desired: Iterable[NftObject], observed: Iterable[NftObject]) -> Plan:
    """Compare kind by kind, in the order in which an operator would type it."""
    desired, observed = list(desired), list(observed)
    parts = {
        kind: compare(
            [o for o in desired if o.kind == kind], [o for o in observed if o.kind == kind]
        )
        for kind in dict.fromkeys(o.kind for o in get_args(NftObject))
    }
    parts[NftElement.kind] = _with_sources(parts[NftElement.kind])
    return merge(parts)


def _with_sources(plan: Plan) -> Plan:
    """Say of each element that is added which source it comes from, if it does."""
    actions = (
        replace(a, reason=f"{a.reason}: {a.object.why}")
        if isinstance(a, Change)
        and a.verb is Verb.CREATE
        and isinstance(a.object, NftElement)
        and a.object.why
        else a
        for a in plan.actions
    )
    return replace(plan, actions=tuple(actions))


def _shape(obj: NftObject) -> object:
    if isinstance(obj, NftElement | NftLink):
        return None
    return obj.place if isinstance(obj, NftChain) else obj


def _family_sets(family: Family) -> set[NftObject]:
    sets = sets_of(family)
    return {
        *(NftSet(name, family.nft_type, interval=True) for name in sets.of_ranges),
        NftSet(sets.pods, family.nft_type),
        NftSet(sets.pod_eni, family.nft_type, verdicts=True),
    }


def _held(inputs: Inputs) -> tuple[IpNetwork, ...]:
    """Return what EC2 has given this node for pods, but for what is on its way back to EC2.

    That may soon be another node's, which pods of this one must reach.
    """
    return tuple(
        network
        for eni, _ in inputs.pod_enis
        for network in (*map(host_network, eni.secondaries), *eni.prefixes, *eni.ipv6_prefixes)
        if network not in inputs.ec2.quarantined
    )


def _cidrs(inputs: Inputs, family: Family) -> frozenset[NftObject]:
    cidrs, kept = inputs.document.routing.external_service_cidrs, untranslated(inputs, family)
    why = tuple(reasons(inputs, kept).items())
    found: frozenset[NftObject] = RANGES(kept, why, cidrs, family)
    return found


def _ranges(
    kept: tuple[Range, ...],
    why: tuple[tuple[Range, str], ...],
    by_main: tuple[IpNetwork, ...],
    family: Family,
) -> frozenset[NftObject]:
    sets, because = sets_of(family), dict(why)
    mained = coalesce(c for c in by_main if c.version == family.version)
    return frozenset(
        NftElement(name, first, last, why=said.get((first, last), ""))
        for name, ranges, said in ((sets.no_snat, kept, because), (sets.by_main, mained, {}))
        for first, last in ranges
    )


def _held_ranges(held: tuple[IpNetwork, ...], family: Family) -> frozenset[NftObject]:
    ranges = coalesce(n for n in held if n.version == family.version)
    return frozenset(NftElement(sets_of(family).held, *range_) for range_ in ranges)


RANGES = RememberedWhileAsked(_ranges)
"""Those in force: objects that are the same are compared with no look into them."""

HELD = RememberedWhileAsked(_held_ranges)
"""Those that are held, likewise."""
