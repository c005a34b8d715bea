"""ENIs and their addresses in EC2: a pool that grows before it is needed and shrinks by proof."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from reconciler.core.datapath import MAX_DEVICE_INDEX, IpNetwork, family_of
from reconciler.core.facts import Eni
from reconciler.engine.plan import Plan
from reconciler.errors import Issue
from reconciler.ipam import ec2_action as ec2
from reconciler.ipam import eni_settings, pool, shortage
from reconciler.ipam.cloud import CREATION_TAG, PREFIX_SIZE, Cloud
from reconciler.ipam.pool import Place
from reconciler.ipam.pool_status import Pool, PoolStatus, find_pool_status, kept
from reconciler.ipam.release import counted_networks, holds_used, pick
from reconciler.ipam.start import NOTHING

MIN_ENI_AGE_S = 60.0
"""Seconds before a new ENI may go again (stock plugin: ``minENILifeTime``), so that a burst of
pods does not make ENIs come and go."""

CREATION_WINDOW_S = 3600.0
"""Seconds over which creations are counted."""


def quarantine(desired: Pool, observed: Cloud) -> frozenset[IpNetwork]:
    """Say which units no pod may get any more, because they are to be given back.

    While sources disagree nothing is added. While ENIs are being taken over it is not known what
    is needed. What EC2 was asked to take back stays quarantined in every mode.
    """
    if not desired.gives_back:
        return desired.ec2.quarantined & desired.ec2.maybe_released
    return _surplus(desired, observed)


def _surplus(desired: Pool, observed: Cloud) -> frozenset[IpNetwork]:
    """Return what is to be given back, if EC2 may be asked to take it."""
    if _to_adopt(desired, observed):
        return desired.ec2.quarantined
    at = find_pool_status(desired, observed)
    needed = 0
    if desired.prefixes and at.shortfall > 0:
        slots = sum(at.free_slots(e) for e in at.enis)
        needed = max(-(-at.shortfall // PREFIX_SIZE) - slots - at.room_for_enis * at.slots, 0)
    chosen = pick(
        at.stock,
        at.band,
        slots_needed=needed,
        growable=at.fitting,
        maybe_released=desired.ec2.maybe_released,
    )
    chosen -= kept(desired, at).networks
    chosen |= {n for e in at.enis if _goes(e, chosen, desired, at) for n in e.ipv6_prefixes}
    return chosen & desired.ec2.quarantined if _sources_disagree(desired, observed) else chosen


def _goes(eni: Eni, leaving: frozenset[IpNetwork], desired: Pool, at: PoolStatus) -> bool:
    """Whether an ENI goes whole, so that no pod may get an address of its prefix any more."""
    if _stays(eni, desired, at) or eni.eni_id in kept(desired, at).enis:
        return False
    counted = counted_networks(eni)
    emptied = not eni.is_primary and all(n in leaving for n in counted)
    useless = not counted and eni.eni_id not in at.needed
    return bool(emptied and (counted or useless)) and not holds_used(eni, desired.ec2.used)


def _stays(eni: Eni, desired: Pool, at: PoolStatus) -> bool:
    """Whether an ENI stays for its prefix alone: pods need it, and it would be attached again."""
    return not desired.counts and eni.eni_id in at.needed


GIVING_BACK = ec2.ReleaseAddresses | ec2.ReleasePrefixes | ec2.DetachEni | ec2.DeleteEni


def plan(desired: Pool, observed: Cloud) -> Plan:
    """Finish what was begun, cure what was lost, then grow or give back, as ec2.mode allows."""
    at = find_pool_status(desired, observed)
    whole = _plan(desired, at)
    if desired.gives_back or observed.primary is None:
        return whole
    held = [a for a in whole.actions if desired.is_frozen or isinstance(a, GIVING_BACK)]
    actions = tuple(a for a in whole.actions if a not in held)
    surplus = _surplus(desired, observed) - quarantine(desired, observed)
    # Without the type's limits it is not known where more addresses would go.
    short = at.shortfall if desired.is_frozen and not at.limits else 0
    refusals = whole.refusals
    if held or surplus or short > 0:
        refusals += (shortage.not_asked(desired, held, surplus, short),)
    return replace(whole, actions=actions, refusals=refusals)


def _plan(desired: Pool, at: PoolStatus) -> Plan:
    observed = at.observed
    if observed.primary is None:
        unread = tuple(shortage.unread(observed.unread))
        return Plan(refusals=(shortage.no_primary(desired.node), *unread))
    adoptions = Plan(tuple(_adopt(desired, observed)))
    if _to_adopt(desired, observed):
        # Without them the pool seems to lack what it has: they come first.
        return _hold_back(adoptions, desired)
    back = _to_attach(desired, at)
    growth = _cure(desired, at) + (
        _grow(desired, at, back)
        if at.limits
        else Plan()
        if desired.is_frozen or desired.group
        else Plan(refusals=(shortage.no_limits(desired.node, observed.unread),))
    )
    asked = {a.eni_id for a in growth.actions if isinstance(a, ec2.DelegatePrefix)}
    given = [] if _sources_disagree(desired, observed) else _give_back(desired, at)
    leaving = {a.eni_id for a in given if isinstance(a, ec2.DetachEni)} - _grown(growth)
    growth += _delegate(desired, at, asked=asked | leaving, attaching=bool(back))
    # What an ENI is given in this plan shows that it is needed: it gives back in a later one.
    grown = _grown(growth)
    parts = (
        adoptions,
        _finish(desired, at, back),
        growth,
        Plan(tuple(a for a in given if a.eni_id not in grown)),
        Plan(refusals=(*shortage.notices(desired, at), *_postponed(desired, at))),
    )
    return _hold_back(sum(parts, Plan()), desired)


def _postponed(desired: Pool, at: PoolStatus) -> Iterator[Issue]:
    """Say what would be given back now, if the node had not just started."""
    if desired.ec2.kept is NOTHING:
        return
    enis = kept(desired, at).enis
    usual = replace(desired, ec2=replace(desired.ec2, kept=NOTHING))
    networks = quarantine(usual, at.observed) - quarantine(desired, at.observed)
    loose = [e.eni_id for e in _superfluous(usual, at, _to_attach(usual, at)) if e.eni_id in enis]
    if networks or loose:
        yield shortage.postponed(desired, at, networks, loose)


def _grown(plan: Plan) -> set[str]:
    """Name the ENIs that are given addresses or prefixes."""
    return {a.eni_id for a in plan.actions if isinstance(a, ec2.Assignment)}


def _sources_disagree(desired: Pool, observed: Cloud) -> bool:
    """Whether EC2's list is incomplete or disputed, so that nothing may be given back.

    An ENI that cannot be read may be ours. Without the primary ENI it is not known where ENIs
    should be, and without the type's limits how many.
    """
    limited = desired.limits or observed.limits or desired.is_frozen
    known = limited and observed.primary and not observed.unread_enis
    return bool(desired.ec2.disagreements or not known) or observed.behind


def adopted(eni: Eni) -> Eni:
    """Return an ENI as it will be once it is taken over."""
    return replace(eni, owned=True, stock=False, stock_tags=())


def _to_adopt(desired: Pool, observed: Cloud) -> list[Eni]:
    """Return the stock plugin's ENIs that are attached here and are to become ours."""
    return [e for e in observed.enis if desired.take_over and e.is_adoptable]


def _adopt(desired: Pool, observed: Cloud) -> Iterator[ec2.Ec2Action]:
    """Replace the stock plugin's tags by ours on every ENI that is attached here."""
    for eni in observed.enis:
        ours = eni.owned or eni.is_adoptable
        if desired.take_over and ours and eni.stock_tags and eni.device_index is not None:
            reason = "the stock plugin's; other nodes that run it would delete it once detached"
            yield ec2.AdoptEni(eni.eni_id, desired.tags, eni.stock_tags, reason)


def _finish(desired: Pool, at: PoolStatus, back: dict[int, Eni]) -> Plan:
    """Go on with creations that were recorded, and with ENIs that are attached to nothing."""
    actions: list[ec2.Ec2Action] = []
    instance_id = desired.node.instance_id
    for creation in at.pending:
        reason = "recorded, but its ENI was not seen yet"
        actions.append(ec2.AddEni(instance_id, creation, reason))
    for index, eni in back.items():
        reason = "ours, but attached to nothing: interrupted at its creation, or detached by hand"
        actions.append(ec2.AttachEni(eni.eni_id, instance_id, index, reason))
    for eni in _superfluous(desired, at, back):
        reason = "ours, attached to nothing, and not needed"
        actions.append(ec2.DeleteEni(eni.eni_id, reason))
    return Plan((*actions, *eni_settings.plan(desired, at)))


def _superfluous(desired: Pool, at: PoolStatus, back: dict[int, Eni]) -> list[Eni]:
    """Return our unattached ENIs that are not needed, if that can be known."""
    if _sources_disagree(desired, at.observed):
        return []
    used = desired.ec2.used
    rest = [
        e for e in _unattached(desired, at) if e not in back.values() and not holds_used(e, used)
    ]
    staying = kept(desired, at).enis
    return [e for e in rest if _is_old(e, desired.now) and e.eni_id not in staying]


def _unattached(desired: Pool, at: PoolStatus) -> list[Eni]:
    free = [e for e in at.observed.enis if e.owned and e.status == "available"]
    return [e for e in free if desired.is_of(e.group)]


def _to_attach(desired: Pool, at: PoolStatus) -> dict[int, Eni]:
    """Choose the ENIs of ours to attach again, by their new device index.

    First those whose addresses pods use: they were detached by hand.
    """
    used = desired.ec2.used
    found = sorted(_unattached(desired, at), key=lambda e: -sum(e.holds(a) for a in used))
    found = [e for e in found if e.group == desired.group or holds_used(e, used)]
    chosen: dict[int, Eni] = {}
    short = at.shortfall if desired.counts else int(not at.needed)
    for index, eni in zip(_free_indices(at), found, strict=False):
        if len(chosen) < at.room_for_enis and (holds_used(eni, used) or short > 0):
            chosen[index] = eni
            short -= len(eni.pod_addresses) if desired.counts else 1
    return chosen


def _cure(desired: Pool, at: PoolStatus) -> Plan:
    """Report an address in use that neither EC2 nor metadata shows, and ask for it again."""
    actions: list[ec2.Ec2Action] = []
    refusals: list[Issue] = []
    enis = {e.eni_id: e for e in at.enis}
    lost = desired.ec2.disagreements.lost
    groups = {e.eni_id: e.group for e in at.observed.enis}
    pods = [a for a in desired.attachments if desired.is_of(groups.get(a.eni_id, ""))]
    for attachment, address in ((a, own) for a in pods for own in a.addresses):
        holding = [n for eni_id, n in lost if eni_id == attachment.eni_id and address in n]
        if not holding:
            continue
        eni = enis.get(attachment.eni_id)
        refusals.append(shortage.address_lost(attachment, address, present=eni is not None))
        if eni is not None:
            who = attachment.pod or str(attachment.key)
            item = min(holding, key=lambda n: n.prefixlen)
            again = _ask_again(eni, item, f"AddressLost: {who} uses it")
            if all(a.key != again.key for a in actions):
                actions.append(again)
    return Plan(tuple(actions), tuple(refusals))


def _ask_again(eni: Eni, item: IpNetwork, reason: str) -> ec2.Ec2Action:
    where = eni.eni_id, eni.subnet_id, reason
    if item.num_addresses == 1:
        return ec2.AssignAddresses(*where, units=(item.network_address,))
    if family_of(item).counted:
        return ec2.AssignPrefixes(*where, units=(item,))
    return ec2.DelegatePrefix(*where, item)


def _grow(desired: Pool, at: PoolStatus, back: dict[int, Eni]) -> Plan:
    short = at.shortfall - sum(len(e.pod_addresses) for e in back.values())
    if short <= 0:
        return Plan()
    allowed = _may_create(desired, at)
    growth = pool.grow(
        short,
        places=[Place(e.subnet_id, at.free_slots(e)) for e in at.enis],
        spaces=at.spaces,
        candidates=at.choice.subnets,
        new_enis=min(at.room_for_enis - len(back), allowed),
        slots=at.slots,
        prefixes=desired.prefixes,
    )
    besides = at.stock.held + at.coming - at.counted
    why = f"pool holds {at.counted} of {at.band.aim} addresses"
    why += f" besides {besides} to be exchanged" if besides else ""
    actions: list[ec2.Ec2Action] = []
    for eni, share in zip(at.enis, growth.shares, strict=True):
        where, reason = eni.subnet_id, f"{why}; {eni.subnet_id}"
        if share.prefixes:
            actions.append(ec2.AssignPrefixes(eni.eni_id, where, reason, count=share.prefixes))
        if share.addresses:
            actions.append(ec2.AssignAddresses(eni.eni_id, where, reason, count=share.addresses))
    lost = [f"{name}: {reason}" for name, reason in (*at.choice.rejected, *growth.full)]
    lost[shortage.MAX_NAMED :] = ["others"] if lost[shortage.MAX_NAMED :] else []
    indices = [i for i in _free_indices(at) if i not in back]
    for index, share in zip(indices, growth.creations, strict=False):
        chosen = f"{why}; {share.subnet_id}" + (f", not {', '.join(lost)}" if lost else "")
        creation = _creation(desired, at, index, share)
        actions.append(ec2.AddEni(desired.node.instance_id, creation, chosen))
    return Plan(
        tuple(actions), tuple(shortage.shortages(desired, at, growth, capped=allowed == 0))
    )


def _delegate(desired: Pool, at: PoolStatus, *, asked: set[str], attaching: bool) -> Plan:
    """Have a prefix that is not counted on every ENI that serves pods, and one such ENI.

    ``asked``: ENIs that are left out: their lost prefix is asked for by name, or they go.
    """
    if not desired.delegates:
        return Plan()
    # One that EC2 does not show any more may still be there, and could not be given back.
    withheld = {
        eni_id for eni_id, n in desired.ec2.disagreements.missing if not family_of(n).counted
    }
    waiting = asked | withheld
    actions: list[ec2.Ec2Action] = [
        ec2.DelegatePrefix(e.eni_id, e.subnet_id, f"it has none, and pods need one; {e.subnet_id}")
        for e in at.enis
        if e.eni_id in at.needed and not e.ipv6_prefixes and e.eni_id not in waiting
    ]
    if desired.counts or at.needed or at.pending or attaching or not desired.needs_prefix:
        return Plan(tuple(actions))
    if at.room_for_enis <= 0 or not at.choice.subnets or not _may_create(desired, at):
        return Plan(tuple(actions), tuple(shortage.no_way_in(desired, at)))
    (index, *_) = _free_indices(at)
    share = pool.Share(at.choice.subnets[0])
    reason = f"no ENI may serve pods, and its prefix will serve all; {share.subnet_id}"
    creation = _creation(desired, at, index, share)
    return Plan((*actions, ec2.AddEni(desired.node.instance_id, creation, reason)))


def _may_create(desired: Pool, at: PoolStatus) -> int:
    recent = [c for c in desired.ec2.creations if desired.now - c.at < CREATION_WINDOW_S]
    return max(2 * (at.limits.enis if at.limits else 0) - len(recent), 0)


def _give_back(desired: Pool, at: PoolStatus) -> list[ec2.GiveBack]:
    """Release what is quarantined and free; detach an ENI that is left with nothing.

    What the pool lacks and EC2 shows, although it was asked to take it back, may have been given
    again: it is waited for. To release it would end in the same answer again.
    """
    actions: list[ec2.GiveBack] = []
    awaited = desired.ec2.maybe_released if at.stock.held < at.band.low else frozenset()
    at_start = kept(desired, at)
    staying = awaited | at_start.networks
    leaving = {(u.eni.eni_id, u.network) for u in at.stock.quarantined if u.network not in staying}
    for eni in at.enis:
        networks = counted_networks(eni)
        mine = [n for n in networks if (eni.eni_id, n) in leaving]
        may_go = not eni.is_primary and eni.attachment_id and eni.eni_id not in at_start.enis
        emptied = may_go and len(mine) == len(networks)
        if eni.ipv6_prefixes and emptied:
            # No pod can get an address of its prefix any more, and none has.
            emptied = desired.ec2.quarantined.issuperset(eni.ipv6_prefixes)
            emptied = emptied and not holds_used(eni, desired.ec2.used)
        useless = not networks and eni.eni_id not in at.needed
        if emptied and (mine or useless) and not _stays(eni, desired, at):
            if not _is_old(eni, desired.now):
                continue  # whole, and soon enough
            count = len(eni.pod_addresses)
            reason = f"not needed: {count} addresses beyond {at.band.high}; {eni.subnet_id}"
            actions.append(ec2.DetachEni(eni.eni_id, str(eni.attachment_id), reason))
            continue
        reason = f"pool holds {at.stock.held} of {at.band.aim} without; {eni.subnet_id}"
        if addresses := tuple(n.network_address for n in mine if n.num_addresses == 1):
            actions.append(ec2.ReleaseAddresses(eni.eni_id, addresses, reason))
        if prefixes := tuple(n for n in mine if n.num_addresses > 1):
            actions.append(ec2.ReleasePrefixes(eni.eni_id, prefixes, reason))
    return actions


def _hold_back(whole: Plan, desired: Pool) -> Plan:
    """Replace actions in backoff by the reason."""
    actions, refusals = [], list(whole.refusals)
    known, now, waiting = desired.ec2.backoffs, desired.clock, desired.demand.waiting > 0
    for action in whole.actions:
        backoffs = ((call, known.of(call, now, waiting=waiting)) for call in action.calls)
        call, backoff = next(((c, r) for c, r in backoffs if r), ("", None))
        if backoff is None:
            actions.append(action)
        else:
            wait_s = backoff.ends(waiting=waiting) - now
            refusals.append(shortage.hold_back(action, call, backoff, wait_s))
    return Plan(tuple(actions), tuple(refusals))


def _creation(desired: Pool, at: PoolStatus, index: int, share: pool.Share) -> ec2.Creation:
    text = f"{desired.ec2.nonce}/{desired.node.instance_id}/{index}"
    token = hashlib.sha256(text.encode()).hexdigest()[:32]
    return ec2.Creation(
        token=token,
        device_index=index,
        subnet_id=share.subnet_id,
        security_groups=eni_settings.security_groups(desired, at.observed.primary)[0],
        addresses=share.addresses,
        prefixes=share.prefixes,
        tags=tuple(sorted((*desired.tags, (CREATION_TAG, token)))),
        at=desired.now,
        ipv6_prefixes=int(desired.delegates),
    )


def _free_indices(at: PoolStatus) -> list[int]:
    return [i for i in range(1, MAX_DEVICE_INDEX + 1) if i not in at.room.indices]


def _is_old(eni: Eni, now: float) -> bool:
    """Whether an ENI may go. One from the future was created before the clock was set back."""
    return eni.created_at is None or not 0 <= now - eni.created_at < MIN_ENI_AGE_S
