"""Issues of the pool: each with its numbers, and what to do next."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from reconciler.core.attachment import Attachment
from reconciler.core.datapath import FAMILIES, IpAddress, IpNetwork, family_of
from reconciler.core.facts import Node
from reconciler.engine.plan import Action
from reconciler.errors import Issue
from reconciler.ipam import budget
from reconciler.ipam.budget import CallBackoff
from reconciler.ipam.cloud import PREFIX_SIZE, Unread
from reconciler.ipam.pool import Growth, most_addresses, overcommitted
from reconciler.ipam.pool_status import Pool, PoolStatus
from reconciler.ipam.sources import REPORT_S

DEMAND_UNKNOWN = "DemandUnknown"

MAX_NAMED = 8
"""EC2 objects that are named for one reason; the others are counted."""


def _of_pool(node: Node, reason: str, message: str, group: str = "") -> Issue:
    what = f"group {group}" if group else "pool"
    return Issue(f"{what} of {node.instance_id}", reason, message)


def no_primary(node: Node) -> Issue:
    """EC2 does not show the primary ENI, whose subnet and groups new ENIs take."""
    return _of_pool(
        node,
        "PrimaryEniUnknown",
        f"EC2 shows no ENI with the MAC {node.primary_mac}, the primary's by instance metadata, "
        "whose subnet and security groups new ENIs take; check that DescribeNetworkInterfaces "
        "sees this instance",
    )


def no_limits(node: Node, unread: Iterable[Unread]) -> Issue:
    """The instance type's limits are not known."""
    why = next((u.why for u in unread if u.kind == "instance-type"), "EC2 does not tell")
    return _of_pool(
        node,
        "InstanceTypeUnknown",
        f"what {node.instance_type} allows is not known, so the pool neither grows nor gives "
        f"back: {why}; it is asked for again, or name its limits in instanceTypes",
    )


def unread(found: Sequence[Unread]) -> Iterator[Issue]:
    """What EC2 listed and could not be read, the first few by name."""
    told = [u for u in found if u.kind != "instance-type"]
    more = f" (and {len(told) - MAX_NAMED} more)" if len(told) > MAX_NAMED else ""
    for entry in told[:MAX_NAMED]:
        effect = (
            "it counts as attached, and nothing is given back until it can be read"
            if entry.kind == "eni"
            else "no ENI is made there until it can be read"
        )
        yield Issue(
            f"{entry.kind} {entry.name or 'without an id'}",
            "AnswerUnreadable",
            f"EC2 lists it, but {entry.why}; {effect}{more}",
        )


def address_lost(attachment: Attachment, address: IpAddress, *, present: bool) -> Issue:
    """A pod uses an address that EC2 has assigned to no ENI, or to another one."""
    who, eni_id = attachment.pod or str(attachment.key), attachment.eni_id
    cure = (
        f"it is asked for again on {eni_id}" if present else f"{eni_id} is gone: restart the pod"
    )
    return Issue(
        f"attachment {attachment.key}",
        "AddressLost",
        f"{who} uses {address}, which neither EC2 nor instance metadata shows on this node any "
        f"more; {cure}",
    )


def shortages(desired: Pool, at: PoolStatus, growth: Growth, *, capped: bool) -> Iterator[Issue]:
    """What growth could not get, and why."""
    if growth.unmet <= 0:
        return
    whose = f"for group {desired.group} " if desired.group else ""
    missing = (
        f"{whose}{at.band.aim} addresses wanted, {at.stock.held} held{_unusable(at)}, "
        f"{growth.unmet} cannot be had"
    )
    if capped and at.room_for_enis:
        created = f"{len(desired.ec2.creations)} ENIs were created within an hour"
        why = f"{missing}: {created} and added no capacity; check their state in EC2"
        yield _of_pool(desired.node, "CreationRateReached", why, desired.group)
        return
    where = f"group {desired.group}" if desired.group else "eni.subnets"
    advice = f"free addresses there, or name further subnets in {where}"
    hidden = {n: s.reservations_unknown for n, s in at.observed.subnets.items()}
    unknown = {
        n: f"; its CIDR reservations are not known: {why}" for n, why in hidden.items() if why
    }
    full = [
        (name, f"{missing}: {reason}{unknown.get(name, '')}; {advice}")
        for name, reason in growth.full
    ]
    yield from _of_subnets("SubnetExhausted", full)
    if at.room_for_enis:
        yield from _rejected(desired, at, missing)
        if growth.full or not at.choice.subnets:
            return
    if growth.unmet > _slots_left(desired, at, growth):
        yield _limit_reached(desired, at, missing)


def _rejected(desired: Pool, at: PoolStatus, missing: str) -> Iterator[Issue]:
    rejected = [(name, f"{missing}: {reason}") for name, reason in at.choice.rejected]
    yield from _of_subnets("SubnetRejected", rejected)
    if not rejected and not at.choice.subnets:
        tags = ", ".join(f"{key}={value}" for key, value in desired.document.eni.subnet_tags)
        why = f"{missing}: no subnet is known that has the tags {tags}"
        yield _of_pool(desired.node, "SubnetRejected", why, desired.group)


def _of_subnets(reason: str, told: Sequence[tuple[str, str]]) -> Iterator[Issue]:
    """Name the first few of the subnets with one reason: a selector may find hundreds."""
    more = f" (and {len(told) - MAX_NAMED} more subnets)" if len(told) > MAX_NAMED else ""
    for subnet_id, message in told[:MAX_NAMED]:
        yield Issue(f"subnet {subnet_id}", reason, message + more)


def _slots_left(desired: Pool, at: PoolStatus, growth: Growth) -> int:
    """Addresses that the existing ENIs could still take if their subnets had them."""
    taken = sum(s.addresses + s.prefixes for s in growth.shares)
    left = sum(at.free_slots(e) for e in at.enis) - taken
    return left * (PREFIX_SIZE if desired.prefixes else 1)


def _unusable(at: PoolStatus) -> str:
    """Say how many of the addresses that are held are in the wrong place."""
    parts = []
    if at.misplaced:
        count = sum(len(e.pod_addresses) for e in at.misplaced)
        where = ", ".join(sorted({e.subnet_id for e in at.misplaced}))
        word = "ENI" if len(at.misplaced) == 1 else "ENIs"
        parts.append(f"{count} of them on {len(at.misplaced)} {word} in {where}, not to be used")
    parts += [
        f"{len(e.pod_addresses)} of them on the primary ENI, not to be used"
        for e in at.enis
        if e.is_primary and e.eni_id not in at.fitting and e.pod_addresses
    ]
    if others := [u for u in at.stock.exchangeable if u.eni.eni_id in at.fitting]:
        count = sum(u.size for u in others)
        parts.append(f"{count} of them to be exchanged for the kind that eni.allocate names")
    return f" ({'; '.join(parts)})" if parts else ""


def no_way_in(desired: Pool, at: PoolStatus) -> Iterator[Issue]:
    """No ENI may serve pods, and none can be made."""
    pods = f"pods of group {desired.group}" if desired.group else "pods"
    missing = f"{pods} need an ENI with an IPv6 prefix, and there is none"
    yield from _rejected(desired, at, missing)
    if at.choice.subnets:
        yield _of_pool(
            desired.node,
            "PoolLimitReached" if at.room_for_enis <= 0 else "CreationRateReached",
            f"{missing}: no further ENI can be had now; let pods use the primary ENI "
            "(eni.usePrimary), or raise eni.max",
            desired.group,
        )


def _limit_reached(desired: Pool, at: PoolStatus, missing: str) -> Issue:
    assert at.limits is not None
    by_type = desired.document.eni.max is None or desired.document.eni.max >= at.limits.enis
    source = desired.node.instance_type if by_type else "eni.max"
    foreign = at.foreign + sum(u.kind == "eni" for u in at.observed.unread)
    most, text = most_addresses(desired.document, at.limits, foreign=foreign, others=at.others)
    singles = sum(len(e.secondaries) for e in at.enis) if desired.prefixes else 0
    larger = "use a larger instance type" if by_type else "raise eni.max"
    if at.misplaced:
        cure = "drain the node, so that what is in the wrong subnet can go"
    elif singles:
        cure = (
            f"but {singles} single addresses take slots that prefixes need, and one is given back "
            "when no pod uses it: drain the node"
        )
    elif at.others and not most:
        cure = f"{larger}, or run pods of fewer groups here"
    elif desired.demand.total >= most:
        # All of it is in use: less held ready would change nothing.
        cure = f"pods use all of them: {larger}, or run fewer pods here (maxPods)"
    else:
        cure = f"lower warmPool, or {larger}"
    message = f"{missing}: {source} allows {text} = {most}; {cure}"
    return _of_pool(desired.node, "PoolLimitReached", message, desired.group)


def notices(desired: Pool, at: PoolStatus) -> Iterator[Issue]:
    """What the document asks for and cannot be done now."""
    node = desired.node
    yield from _draining(desired, at)
    if desired.group:
        return  # what follows is said once
    if at.limits is not None:
        told = overcommitted(desired.document, node.instance_type, at.limits, foreign=at.foreign)
        if told:
            yield Issue(f"maxPods of {node.instance_id}", "MaxPodsTooHigh", told)
    yield from unread(at.observed.unread)
    yield from _without_block(desired, at)
    yield from _without_egress(desired, at)
    if desired.ec2.disagreements and desired.clock - desired.ec2.disagreements.since >= REPORT_S:
        yield _disagreement(desired)


def _draining(desired: Pool, at: PoolStatus) -> Iterator[Issue]:
    """ENIs whose pods stay, and that get no others."""
    for eni in at.enis:
        used = sum(eni.holds(a) for a in desired.ec2.used)
        if eni.is_primary or eni.eni_id in at.fitting or not used:
            continue
        reason = "SubnetImmutable"
        why = f"it is in {eni.subnet_id}, which the document does not name, and EC2 cannot move it"
        if eni.group != desired.group:
            reason = "GroupGone"
            why = f"it is of group {eni.group}, which the document has no more"
        yield Issue(
            f"eni {eni.eni_id}",
            reason,
            f"{why}; it goes when its {used} addresses in use are free: drain the node to hasten",
        )


def postponed(
    desired: Pool, at: PoolStatus, networks: Collection[IpNetwork], enis: Sequence[str]
) -> Issue:
    """What would be given back, if the node had not just started.

    ``networks``: units of attached ENIs. ``enis``: ids of ENIs that are attached to nothing.
    """
    count = sum(n.num_addresses for n in networks if family_of(n).counted)
    prefixes = [str(n) for n in networks if not family_of(n).counted]
    parts = [f"{count} addresses beyond {at.band.high}"] if count else []
    parts += [f"{len(prefixes)} ENIs with an IPv6 prefix"] if prefixes else []
    parts += [f"{' and '.join(enis[:MAX_NAMED])}, attached to nothing"] if enis else []
    return _of_pool(
        desired.node,
        DEMAND_UNKNOWN,
        f"the node has just started, and pods may still be coming: {'; '.join(parts)}; what they "
        f"do not need is given back in {desired.ec2.kept.until - desired.clock:.0f} s",
        desired.group,
    )


def not_asked(
    desired: Pool, held: Sequence[Action], surplus: Collection[IpNetwork], short: int
) -> Issue:
    """What would be asked of EC2 if ``ec2.mode`` were full.

    ``surplus``: units that would be given back. ``short``: addresses that are lacking.
    """
    named = [str(action) for action in held[:MAX_NAMED]]
    named += [f"{len(held) - MAX_NAMED} others"] if len(held) > MAX_NAMED else []
    named += [f"{short} more addresses"] if short > 0 else []
    count = sum(n.num_addresses for n in surplus if family_of(n).counted)
    named += [f"the release of {count} addresses that are not needed"] if count else []
    prefixes = sum(not family_of(n).counted for n in surplus)
    named += [f"the release of {prefixes} IPv6 prefixes with their ENIs"] if prefixes else []
    mode = desired.document.ec2.mode
    return _of_pool(
        desired.node,
        "HeldByMode",
        f"ec2.mode is {mode}, so EC2 is not asked for: {'; '.join(named)}; mode full allows it",
        desired.group,
    )


def _without_egress(desired: Pool, at: PoolStatus) -> Iterator[Issue]:
    """The node itself has no address of a family in ``egressFamilies``."""
    primary = next((e for e in at.enis if e.is_primary), None)
    for name in desired.document.egress_families:
        if primary is not None and primary.host_address(FAMILIES[name].version) is None:
            yield Issue(
                f"eni {primary.eni_id}",
                "EgressUnavailable",
                f"egressFamilies has {name}, of which the primary ENI has no address, so pods "
                "start without egress in that family; assign it one, or remove the family",
            )


def _without_block(desired: Pool, at: PoolStatus) -> Iterator[Issue]:
    """The primary ENI's subnet has no CIDR block of a family in ``families``."""
    for eni in at.enis:
        home = at.observed.subnets.get(eni.subnet_id)
        if not eni.is_primary or home is None or not desired.document.eni.use_primary:
            continue
        if missing := [f for f in desired.document.families if f not in home.families]:
            yield Issue(
                f"subnet {eni.subnet_id}",
                "SubnetWithoutFamily",
                f"families has {' and '.join(missing)}, of which the primary ENI's subnet has no "
                "CIDR block, so no pod gets an address there; associate one with the subnet, or "
                "set eni.usePrimary to false and name subnets that have one",
            )


def _disagreement(desired: Pool) -> Issue:
    disagreements = desired.ec2.disagreements
    parts = []
    if missing := len(disagreements.missing):
        parts.append(f"EC2 no longer shows {missing} addresses or prefixes that were there")
    if unconfirmed := len(disagreements.unconfirmed):
        parts.append(f"instance metadata lacks {unconfirmed} that EC2 shows")
    return _of_pool(
        desired.node,
        "SourcesDisagree",
        f"for {desired.clock - disagreements.since:.0f} s {' and '.join(parts)}; nothing is given "
        "back until they agree",
    )


def hold_back(action: Action, call: str, backoff: CallBackoff, wait_s: float) -> Issue:
    """An action that is in backoff after a call of it failed."""
    cure = budget.cure(call, backoff.code)
    return Issue(
        f"{action.kind} {action.key[0]}",
        backoff.code,
        f"{call} {backoff.failure}: {backoff.message}{cure}; again in {wait_s:.0f} s: {action}",
    )
