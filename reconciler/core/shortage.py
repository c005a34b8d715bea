"""Why the pool is not as it should be: each reason with its numbers, and what to do next.

The reasons are stable words; the CNI error, ``status``, the log and the metrics use the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from reconciler.core.attachment import Attachment
from reconciler.core.capacity import overcommitted
from reconciler.core.cloud import Unread
from reconciler.core.datapath import FAMILIES, IpAddress
from reconciler.core.doubt import REPORT_S
from reconciler.core.facts import Node
from reconciler.core.plan import Action, Refusal
from reconciler.core.pool import Growth
from reconciler.core.position import Pool, Position

MAX_UNREAD = 8
"""Objects that are named one by one when an answer of EC2 cannot be read."""


def no_primary(node: Node) -> Refusal:
    """EC2 does not show the ENI that new ones take after."""
    return Refusal(
        subject=f"pool of {node.instance_id}",
        reason="PrimaryEniUnknown",
        message=f"EC2 shows no ENI with the MAC {node.primary_mac}, the primary's by instance "
        "metadata, whose subnet and security groups new ENIs take; check that "
        "DescribeNetworkInterfaces sees this instance",
    )


def no_limits(node: Node, unread: Iterable[Unread]) -> Refusal:
    """The instance type's limits are not known."""
    why = next((u.why for u in unread if u.kind == "instance-type"), "EC2 does not tell")
    return Refusal(
        subject=f"pool of {node.instance_id}",
        reason="InstanceTypeUnknown",
        message=f"what {node.instance_type} allows is not known, so the pool neither grows nor "
        f"gives back: {why}; it is asked for again, or name its limits in instanceTypes",
    )


def unread(found: Sequence[Unread]) -> Iterator[Refusal]:
    """What EC2 listed and could not be read, the first few by name."""
    told = [u for u in found if u.kind != "instance-type"]
    more = f" (and {len(told) - MAX_UNREAD} more)" if len(told) > MAX_UNREAD else ""
    for entry in told[:MAX_UNREAD]:
        effect = (
            "it counts as attached, and nothing is given back until it can be read"
            if entry.kind == "eni"
            else "no ENI is made there until it can be read"
        )
        yield Refusal(
            f"{entry.kind} {entry.name or 'without an id'}",
            "AnswerUnreadable",
            f"EC2 lists it, but {entry.why}; {effect}{more}",
        )


def address_lost(attachment: Attachment, address: IpAddress, *, present: bool) -> Refusal:
    """A pod uses an address that EC2 has given to nobody, or to somebody else."""
    who = attachment.pod or str(attachment.key)
    cure = (
        f"it is asked for again on {attachment.eni_id}"
        if present
        else f"{attachment.eni_id} is gone: restart the pod"
    )
    return Refusal(
        subject=f"attachment {attachment.key}",
        reason="AddressLost",
        message=f"{who} uses {address}, which neither EC2 nor instance metadata shows "
        f"on this node any more; {cure}",
    )


def shortages(desired: Pool, at: Position, growth: Growth, *, capped: bool) -> Iterator[Refusal]:
    """What growth could not get, and why."""
    if growth.unmet <= 0:
        return
    missing = f"{at.band.aim} addresses wanted, {at.stock.held} held, {growth.unmet} cannot be had"
    if capped and at.room_for_enis:
        yield Refusal(
            f"pool of {desired.node.instance_id}",
            "CreationRateReached",
            f"{missing}: {len(desired.creations)} ENIs were created within an hour and did not "
            "help; see what becomes of them in EC2",
        )
        return
    for subnet_id, reason in growth.full:
        yield Refusal(
            f"subnet {subnet_id}",
            "SubnetExhausted",
            f"{missing}: {reason}; free addresses there, or name further subnets in eni.subnets",
        )
    for subnet_id, reason in at.choice.rejected:
        yield Refusal(f"subnet {subnet_id}", "SubnetRejected", f"{missing}: {reason}")
    if growth.full and at.room_for_enis and at.choice.subnets:
        return
    if at.room_for_enis and not at.choice.subnets:
        return
    yield _limit_reached(desired, at, missing)


def no_way_in(desired: Pool, at: Position) -> Iterator[Refusal]:
    """No ENI may serve pods, and none can be made."""
    missing = "pods need an ENI with an IPv6 prefix, and there is none"
    for subnet_id, reason in at.choice.rejected:
        yield Refusal(f"subnet {subnet_id}", "SubnetRejected", f"{missing}: {reason}")
    if at.choice.subnets:
        yield Refusal(
            f"pool of {desired.node.instance_id}",
            "PoolLimitReached" if at.room_for_enis <= 0 else "CreationRateReached",
            f"{missing}: no further ENI can be had now; let pods use the primary ENI "
            "(eni.usePrimary), or raise eni.max",
        )


def _limit_reached(desired: Pool, at: Position, missing: str) -> Refusal:
    assert at.limits is not None
    limit, source = at.limits.enis, desired.node.instance_type
    if desired.max_enis is not None and desired.max_enis < limit:
        limit, source = desired.max_enis, "eni.max"
    return Refusal(
        subject=f"pool of {desired.node.instance_id}",
        reason="PoolLimitReached",
        message=f"{missing}: {source} allows {limit} ENIs x {at.slots} = {limit * at.slots}; "
        "lower warmPool, or use a larger instance type",
    )


def notices(desired: Pool, at: Position) -> Iterator[Refusal]:
    """What stands against the document although nothing can be done about it now."""
    if at.limits is not None:
        told = overcommitted(
            desired.document, desired.node.instance_type, at.limits, foreign=at.foreign
        )
        if told:
            yield Refusal(f"maxPods of {desired.node.instance_id}", "MaxPodsTooHigh", told)
    yield from unread(at.unread)
    yield from _without_block(desired, at)
    yield from _without_egress(desired, at)
    for eni in at.enis:
        used = sum(eni.holds(a) for a in desired.used)
        if not eni.is_primary and eni.eni_id not in at.fitting and used:
            yield Refusal(
                f"eni {eni.eni_id}",
                "SubnetImmutable",
                f"it is in {eni.subnet_id}, which the document does not name, and EC2 cannot move "
                f"it; it goes when its {used} addresses in use are free: drain the node to hasten",
            )
    if desired.doubts and desired.clock - desired.doubts.since >= REPORT_S:
        yield _disagreement(desired)


def _without_egress(desired: Pool, at: Position) -> Iterator[Refusal]:
    """The node itself has no address of a family that pods shall reach hosts in."""
    primary = next((e for e in at.enis if e.is_primary), None)
    for name in desired.document.egress_families:
        if primary is not None and primary.host_address(FAMILIES[name].version) is None:
            yield Refusal(
                f"eni {primary.eni_id}",
                "EgressUnavailable",
                f"egressFamilies has {name}, of which the primary ENI has no address, so pods "
                "start without; assign it one, or remove the family",
            )


def _without_block(desired: Pool, at: Position) -> Iterator[Refusal]:
    """The primary ENI's subnet lacks a family that pods shall have."""
    for eni in at.enis:
        home = at.subnets.get(eni.subnet_id)
        if not eni.is_primary or home is None or not desired.use_primary:
            continue
        if missing := [f for f in desired.families if f not in home.families]:
            yield Refusal(
                f"subnet {eni.subnet_id}",
                "SubnetWithoutFamily",
                f"families has {' and '.join(missing)}, of which the primary ENI's subnet has no "
                "CIDR block, so no pod gets an address there; associate one with the subnet, or "
                "set eni.usePrimary to false and name subnets that have one",
            )


def _disagreement(desired: Pool) -> Refusal:
    doubts = desired.doubts
    missing, unconfirmed = len(doubts.missing), len(doubts.unconfirmed)
    parts = []
    if missing:
        parts.append(f"EC2 no longer shows {missing} addresses or prefixes that were there")
    if unconfirmed:
        parts.append(f"instance metadata lacks {unconfirmed} that EC2 shows")
    return Refusal(
        f"pool of {desired.node.instance_id}",
        "SourcesDisagree",
        f"for {desired.clock - doubts.since:.0f} s {' and '.join(parts)}; nothing is given back "
        "until they agree",
    )


def hold_back(action: Action, reason: str, failure: str, message: str, wait_s: float) -> Refusal:
    """An action that rests after a failure."""
    return Refusal(
        f"{action.kind} {action.key[0]}",
        reason,
        f"{failure}: {message}; again in {wait_s:.0f} s: {action}",
    )
