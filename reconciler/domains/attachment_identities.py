"""Egress identities: which namespace gets which address, and when it is given back.

Recorded and released in one plan with pods' attachments, because they take the same addresses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from reconciler.core.attachment import Cooling
from reconciler.core.datapath import FAMILIES, IpAddress, IpNetwork, family_of
from reconciler.domains.inputs import Inputs
from reconciler.egress.rules import versions
from reconciler.engine.plan import Change, Verb
from reconciler.errors import Issue
from reconciler.ipam.allocation import Supply, lacking, offers
from reconciler.ipam.identity import (
    IDLE_S,
    LOST_S,
    MAX_IDENTITIES,
    NAMESPACE,
    EgressIdentity,
    Owner,
    is_asked_for,
    missing,
    owners,
)
from reconciler.ipam.records import Records

MAX_NAMED = 20
"""Identities that get a condition each; the others are counted."""

REFUSED = "what snat.rules send by a dedicated address is refused"


def bind(
    supply: Supply, inputs: Inputs, observed: Records, pods: Collection[str], taken: Iterable[int]
) -> tuple[list[Change[EgressIdentity]], list[Issue]]:
    """Give an address to each namespace that needs one, or say why it gets none.

    ``supply``: the addresses that pods can get. ``pods``: the names of those that ask. ``taken``:
    addresses that something has, as numbers.
    """
    needed = owners(pods, inputs.document)
    wanting, too_many = missing(needed, observed.identities)
    issues = [
        _issue(o, "NotANamespace", f"its name is none of Kubernetes's; {REFUSED}")
        for o in sorted(needed)
        if not NAMESPACE.fullmatch(o.namespace)
    ]
    issues += [_issue(owner, "TooManyIdentities", _TOO_MANY) for owner in too_many]
    actions: list[Change[EgressIdentity]] = []
    used = {*taken}
    leaving = _leaving(supply, observed)
    unknown = supply.unread or supply.unexplained
    for before in observed.identities if not unknown else ():
        eni = next((e for e in supply.of(before.group).enis if e.eni_id == before.eni_id), None)
        if eni is not None and (names := _lacking_families(before, supply.families)):
            own = replace(supply, enis=(eni,), families=names, egress=())
            offer = next(offers(own, used, leaving), None)
            if offer is None:
                if before.owner in needed and (lacks := _asked_for(before.owner, names, inputs)):
                    issues.append(_issue(before.owner, "IdentityMissing", _half(before, lacks)))
                continue
            _, more = offer
            used.update(map(int, more))
            after = replace(before, addresses=(*before.addresses, *more))
            why = f"pods have {' and '.join(names)} now"
            actions.append(Change(Verb.UPDATE, after, why, before))
    for owner in wanting:
        own = replace(supply.of(owner.group), egress=())
        offer = None if unknown else next(offers(own, used, leaving), None)
        if offer is None:
            issues.append(_issue(owner, "IdentityMissing", _why_none(own, owner)))
            continue
        eni, addresses = offer
        used.update(map(int, addresses))
        identity = EgressIdentity(owner.namespace, owner.group, addresses, eni.eni_id)
        actions.append(Change(Verb.CREATE, identity, "snat.rules give it an address of its own"))
    return actions, issues


_TOO_MANY = (
    f"the node has {MAX_IDENTITIES} dedicated addresses, the most it may have; {REFUSED} for "
    "its pods here: name fewer namespaces in snat.rules, or run them on more nodes"
)


def _why_none(supply: Supply, owner: Owner) -> str:
    held = {a for e in supply.enis for a in e.pod_addresses}
    where = f"{len(supply.enis)} ENIs{f' of group {owner.group}' if owner.group else ''}"
    if supply.unread or supply.unexplained:
        why = "no address is known to be free"
    elif families := lacking(supply):
        why = f"no ENI has a prefix of {families}"
    else:
        why = f"none of {len(held)} addresses on {where} is free"
    return (
        f"{why}; {REFUSED} until the pool has grown, or an address has cooled; if a condition of "
        "the pool says that it cannot grow, run fewer pods here, or a larger instance type"
    )


def _lacking_families(identity: EgressIdentity, names: Iterable[str]) -> tuple[str, ...]:
    have = {family_of(a).name for a in identity.addresses}
    return tuple(name for name in names if name not in have)


def _asked_for(owner: Owner, names: Iterable[str], inputs: Inputs) -> tuple[str, ...]:
    """Return those of some families in which a rule sends the owner's by a dedicated address."""
    about = frozenset[int]().union(
        *(
            versions(rule)
            for rule in inputs.document.snat.rules
            if rule.identity == "dedicated" and fnmatchcase(owner.namespace, rule.namespace)
        )
    )
    return tuple(name for name in names if FAMILIES[name].version in about)


def _half(identity: EgressIdentity, names: Iterable[str]) -> str:
    what, families = " and ".join(map(str, identity.addresses)), " and ".join(names)
    return (
        f"{identity.eni_id}, which has its {what}, has no free {families} address; what of "
        f"{families} {REFUSED.removeprefix('what ')} until it has one; if a condition of the pool "
        "says that it cannot have one, see there"
    )


def _leaving(supply: Supply, observed: Records) -> list[IpNetwork]:
    return [*(q.network for q in observed.quarantined), *supply.occupied, *supply.reserved]


def review(
    inputs: Inputs, observed: Records, cooldown_s: float
) -> Iterator[Change[Cooling] | Change[EgressIdentity]]:
    """Release what is not needed or not ours any more; note since when the rest is idle or lost.

    Connections that are open go on with the address, which no other gets before they have ended.
    It cools from now: a cooldown that a dead process has begun ran while the ruleset led to it.
    """
    needed, now = owners(observed.pods, inputs.document), inputs.now
    cooling = {c.address: c for c in observed.cooling}
    held = {own for a in observed.attachments for own in a.addresses}
    for before in observed.identities:
        is_here = before.is_held_by(e for e in inputs.enis if e.serves_pods)
        after = replace(
            before,
            idle_since=0.0 if before.owner in needed else _since(before.idle_since, now),
            lost_since=0.0 if is_here else _since(before.lost_since, now),
        )
        if why := _why_released(after, held, inputs):
            for address in before.addresses if held.isdisjoint(before.addresses) else ():
                earlier = cooling.get(address)
                cooled = Cooling(address, now + cooldown_s, spares=True)
                if is_here and earlier is None:
                    yield Change(Verb.CREATE, cooled, "it was a namespace's")
                elif earlier is not None and earlier.until < cooled.until:
                    yield Change(Verb.UPDATE, cooled, "it was a namespace's until now", earlier)
            yield Change(Verb.DELETE, before, why)
        elif after != before:
            yield Change(Verb.UPDATE, after, "its use has changed", before)
        held |= {*before.addresses}


def _since(at: float, now: float) -> float:
    """Return since when; a time that has not come yet was written before the clock was set."""
    return min(at, now) if at else now


def _why_released(identity: EgressIdentity, held: Collection[IpAddress], inputs: Inputs) -> str:
    if not is_asked_for(identity.owner, inputs.document):
        return "no rule of the document asks for it"
    if any(own in held for own in identity.addresses):
        return "another record has its address"
    if identity.lost_since and inputs.now - identity.lost_since >= LOST_S:
        return f"EC2 has not shown it on {identity.eni_id} for {LOST_S:.0f} s"
    if identity.idle_since and inputs.now - identity.idle_since >= IDLE_S:
        return f"its namespace has had no pod here for {IDLE_S / 3600:.0f} hours"
    return ""


def find_issues(inputs: Inputs, observed: Records) -> list[Issue]:
    """Say which identities cannot be used, and which rules cannot be followed."""
    found = [
        _issue(i.owner, "IdentityLost", _lost(i, inputs))
        for i in observed.identities
        if not i.idle_since and not i.is_held_by(e for e, _ in inputs.pod_enis)
    ]
    for identity in observed.identities:
        reserved = [a for a in identity.addresses if any(a in n for n in inputs.host.reserved)]
        if reserved:
            found.append(_issue(identity.owner, "AddressReserved", _reserved(reserved)))
    for place, rule in enumerate(inputs.document.snat.rules):
        for family in FAMILIES.values():
            primary = inputs.primary
            lacks = primary is not None and primary.host_address(family.version) is None
            if rule.identity == "node" and family.version in versions(rule) and lacks:
                why = (
                    f"the node's primary ENI has no {family.name} address, so what it sends there "
                    "is refused; assign one, or write another word in as"
                )
                found.append(Issue(f"snat.rules[{place}]", "NodeAddressMissing", why))
    return found


def _reserved(addresses: Iterable[IpAddress]) -> str:
    return (
        f"it has {' and '.join(map(str, addresses))}, which reservedAddresses names since; it "
        "keeps it, because others know the namespace by it: reserve another address, or remove "
        "the rule and write it again when the address has gone"
    )


def _lost(identity: EgressIdentity, inputs: Inputs) -> str:
    what = " and ".join(map(str, identity.addresses))
    if identity.is_held_by(inputs.enis):
        return (
            f"the link of {identity.eni_id}, which has {what}, is not here; {REFUSED} until it is"
        )
    return (
        f"EC2 does not show {what} on {identity.eni_id} any more; {REFUSED}; it is replaced after "
        f"{LOST_S:.0f} s: find out who takes addresses from ENIs of the node"
    )


def capped(issues: list[Issue]) -> Iterator[Issue]:
    """Name some of them, and count the others."""
    yield from issues[:MAX_NAMED]
    if (more := len(issues) - MAX_NAMED) > 0:
        yield Issue("egress identities", issues[MAX_NAMED].reason, f"{more} more like these")


def _issue(owner: Owner, reason: str, message: str) -> Issue:
    return Issue(f"egress identity of {owner}", reason, message)
