"""Contradictions between what is recorded and what EC2 says: the invariants, as one checker.

``diff`` shows what the planner would do. This checks the same objects without the planner: an
empty plan is no proof that all is well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from reconciler.core.attachment import IntentState
from reconciler.core.facts import Eni
from reconciler.engine.issue import Issue
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.ipam.leak import GRACE_S
from reconciler.ipam.records import Records

CREATION_S = 3600.0
"""Seconds for which a creation may be unfinished: EC2 keeps a ClientToken for an hour at least."""

DO = "run 'node-network status' and look at the log of the reconciler"


def contradictions(records: Records, cloud: Cloud | None, now: float) -> tuple[Issue, ...]:
    """Say what cannot be true at once.

    Args:
        records: intents and what is bound.
        cloud: an observation of EC2; None leaves out what only EC2 knows.
        now: seconds since the epoch.
    """
    found = [*_of_records(records, now)]
    if cloud is not None:
        found += _of_addresses(records, cloud)
        found += _of_enis(records, cloud, now)
    return tuple(found)


def _of_records(records: Records, now: float) -> Iterator[Issue]:
    times = Counter(own for a in records.attachments for own in a.addresses)
    holders = {own: a for a in records.attachments for own in a.addresses}
    for address, count in times.items():
        if count > 1:
            who = [str(a.key) for a in records.attachments if address in a.addresses]
            yield Issue(
                f"address {address}",
                "AssignedTwice",
                f"{' and '.join(who)} have it; end one of these pods",
            )
    # A crash between writing the cooldown and removing the binding leaves both, of a pod that
    # ended.
    living = {a.key for a in records.living}
    cooling = {c.address for c in records.cooling}
    for address in sorted(cooling & holders.keys(), key=str):
        if holders[address].key in living:
            yield Issue(
                f"address {address}",
                "AssignedAndCooling",
                f"{holders[address].key} uses it, and it is in cooldown as if it were unused; "
                f"{DO}",
            )
    for quarantine in records.quarantined:
        for address in (a for a in holders if a in quarantine.network):
            yield Issue(
                f"address {address}",
                "AssignedAndQuarantined",
                f"{holders[address].key} uses it, and it is about to be given back to EC2; {DO}",
            )
    yield from _of_lost(records)
    yield from _of_intents(records, now)


def _of_lost(records: Records) -> Iterator[Issue]:
    """Name what is known and has no record: a restart would have to find it out anew."""
    for record in records.lost:
        yield Issue(
            f"{record.kind} {' '.join(map(str, record.key))}",
            "RecordLost",
            "its record is not on disk; what the kernel has of it is kept, and the reconciler "
            "writes it again as soon as its state directory takes it",
        )


def _of_intents(records: Records, now: float) -> Iterator[Issue]:
    bound = {a.key for a in records.attachments}
    asked = {i.key for i in records.intents}
    for intent in records.intents:
        if intent.state is IntentState.WANTED and intent.netns_alive and intent.key not in bound:
            yield Issue(f"intent {intent.key}", "NotServed", f"nothing is bound to it; {DO}")
        if intent.state is IntentState.RELEASED and intent.key not in bound:
            yield Issue(
                f"intent {intent.key}", "NotForgotten", f"it was released and is done; {DO}"
            )
    for a in records.attachments:
        # Of one that was rebuilt from the kernel, the namespace is not known.
        if a.key not in asked and a.netns and not a.netns_alive:
            yield Issue(
                f"attachment {a.key}",
                "WantedByNobody",
                f"it has no intent and no namespace, and holds {a.addresses[0]}; {DO}",
            )
    for creation in records.creations:
        if not creation.done and now - creation.at > CREATION_S:
            yield Issue(
                f"creation {creation.token}",
                "NeverFinished",
                f"it began {(now - creation.at) / 60:.0f} minutes ago; {DO}",
            )


def _of_addresses(records: Records, cloud: Cloud) -> Iterator[Issue]:
    here = [e for e in cloud.enis if e.device_index is not None]
    unread = {u.name for u in cloud.unread_enis}
    for a in records.living:
        for own in a.vpc_addresses:
            holders = [e.eni_id for e in here if e.holds(own)]
            if not holders and ("" in unread or a.eni_id in unread):
                yield Issue(
                    f"attachment {a.key}",
                    "AddressUnknown",
                    f"it uses {own} of {a.eni_id}, and what EC2 says of an ENI cannot be read; "
                    "'node-network explain pool' says why",
                )
            elif not holders:
                yield Issue(
                    f"attachment {a.key}",
                    "AddressLost",
                    f"it uses {own}, which EC2 assigns to no ENI of this node; restart the pod",
                )
            elif a.eni_id and a.eni_id not in holders:
                # Its packets leave by the ENI on record, where the VPC drops them.
                yield Issue(
                    f"attachment {a.key}",
                    "AddressElsewhere",
                    f"it leaves by {a.eni_id}, but EC2 assigns {own} to {' and '.join(holders)}; "
                    "restart the pod",
                )


def _of_enis(records: Records, cloud: Cloud, now: float) -> Iterator[Issue]:
    attached = [e for e in cloud.enis if e.device_index is not None]
    if cloud.limits is not None:
        if len(attached) > cloud.limits.enis:
            yield Issue(
                "node", "LimitExceeded", f"{len(attached)} ENIs of {cloud.limits.enis}; {DO}"
            )
        yield from (_overfull(e, cloud.limits) for e in attached if _is_overfull(e, cloud.limits))
    told = {c.token for c in records.creations}
    for eni in cloud.enis:
        if not eni.owned or eni.device_index is not None or eni.creation in told:
            continue
        age_s = now - (eni.created_at or now)
        if age_s > GRACE_S:
            yield Issue(
                f"ENI {eni.eni_id}",
                "Leaked",
                f"it is ours, {age_s:.0f} s old and attached to nothing; 'node-network gc' "
                "deletes what nodes have left behind",
            )


def _is_overfull(eni: Eni, limits: Limits) -> bool:
    return 1 + len(eni.secondaries) + len(eni.prefixes) > limits.addresses_per_eni


def _overfull(eni: Eni, limits: Limits) -> Issue:
    held = 1 + len(eni.secondaries) + len(eni.prefixes)
    return Issue(
        f"ENI {eni.eni_id}",
        "LimitExceeded",
        f"{held} addresses of {limits.addresses_per_eni}; {DO}",
    )
