"""Contradictions between what is recorded and what EC2 says: the invariants, as one checker.

``diff`` shows what the planner would do. This checks the same objects without the planner: an
empty plan is no proof that all is well.
"""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.core.attachment import Attachment, IntentState
from reconciler.core.datapath import IpAddress
from reconciler.errors import Issue
from reconciler.ipam.cloud import Cloud
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
    found = [*_of_bindings(records), *_of_identities(records), *_of_intents(records, now)]
    if cloud is not None:
        found += [*_of_addresses(records, cloud), *_of_enis(records, cloud, now)]
    return tuple(Issue(*parts) for parts in found)


Parts = Iterator[tuple[str, str, str]]
"""Of issues: subject, reason and message."""


def _of_bindings(records: Records) -> Parts:
    holders: dict[IpAddress, list[Attachment]] = {}
    for a in records.attachments:
        for own in a.addresses:
            holders.setdefault(own, []).append(a)
    for address, several in holders.items():
        if len(several) > 1:
            who = " and ".join(str(a.key) for a in several)
            yield f"address {address}", "AssignedTwice", f"{who} have it; end one of these pods"
    # A crash between writing the cooldown and removing the binding leaves both, of a pod that
    # ended.
    living = {a.key for a in records.living}
    for address in sorted({c.address for c in records.cooling} & holders.keys(), key=str):
        if (key := holders[address][-1].key) in living:
            why = f"{key} uses it, and it is in cooldown as if it were unused; {DO}"
            yield f"address {address}", "AssignedAndCooling", why
    for quarantine in records.quarantined:
        for address in (a for a in holders if a in quarantine.network):
            key = holders[address][-1].key
            why = f"{key} uses it, and it is about to be given back to EC2; {DO}"
            yield f"address {address}", "AssignedAndQuarantined", why
    for record in records.lost:  # a restart would have to find it out anew
        subject = f"{record.kind} {' '.join(map(str, record.key))}"
        why = (
            "its record is not on disk; what the kernel has of it is kept, and the reconciler "
            "writes it again as soon as its state directory takes it"
        )
        yield subject, "RecordLost", why


def _of_identities(records: Records) -> Parts:
    holders = {own: a for a in records.living for own in a.addresses}
    for identity in records.identities:
        for own in identity.addresses:
            if own in holders:
                why = f"{holders[own].key} has it, and it is dedicated to {identity.owner}; {DO}"
                yield f"address {own}", "AssignedAndDedicated", why
            elif any(own in q.network for q in records.quarantined):
                why = f"{identity.owner} has it, and it is about to be given back to EC2; {DO}"
                yield f"address {own}", "AssignedAndQuarantined", why


def _of_intents(records: Records, now: float) -> Parts:
    bound = {a.key for a in records.attachments}
    asked = {i.key for i in records.intents}
    for intent in records.intents:
        subject, is_bound = f"intent {intent.key}", intent.key in bound
        if intent.state is IntentState.WANTED and intent.netns_alive and not is_bound:
            yield subject, "NotServed", f"nothing is bound to it; {DO}"
        if intent.state is IntentState.RELEASED and not is_bound:
            yield subject, "NotForgotten", f"it was released and is done; {DO}"
    for a in records.attachments:
        # Of one that was rebuilt from the kernel, the namespace is not known.
        if a.key not in asked and a.netns and not a.netns_alive:
            why = f"it has no intent and no namespace, and holds {a.addresses[0]}; {DO}"
            yield f"attachment {a.key}", "WantedByNobody", why
    for creation in records.creations:
        if not creation.done and now - creation.at > CREATION_S:
            why = f"it began {(now - creation.at) / 60:.0f} minutes ago; {DO}"
            yield f"creation {creation.token}", "NeverFinished", why


def _of_addresses(records: Records, cloud: Cloud) -> Parts:
    here = [e for e in cloud.enis if e.device_index is not None]
    unread = {u.name for u in cloud.unread_enis}
    for a in records.living:
        for own in a.vpc_addresses:
            holders = [e.eni_id for e in here if e.holds(own)]
            if not holders and ("" in unread or a.eni_id in unread):
                reason = "AddressUnknown"
                why = (
                    f"it uses {own} of {a.eni_id}, and what EC2 says of an ENI cannot be read; "
                    "'node-network explain pool' says why"
                )
            elif not holders:
                reason = "AddressLost"
                why = f"it uses {own}, which EC2 assigns to no ENI of this node; restart the pod"
            elif a.eni_id and a.eni_id not in holders:
                # Its packets leave by the ENI on record, where the VPC drops them.
                reason = "AddressElsewhere"
                why = (
                    f"it leaves by {a.eni_id}, but EC2 assigns {own} to {' and '.join(holders)}; "
                    "restart the pod"
                )
            else:
                continue
            yield f"attachment {a.key}", reason, why


def _of_enis(records: Records, cloud: Cloud, now: float) -> Parts:
    attached = [e for e in cloud.enis if e.device_index is not None]
    if limits := cloud.limits:
        if len(attached) > limits.enis:
            yield "node", "LimitExceeded", f"{len(attached)} ENIs of {limits.enis}; {DO}"
        for eni in attached:
            held = 1 + len(eni.secondaries) + len(eni.prefixes)
            if held > limits.addresses_per_eni:
                why = f"{held} addresses of {limits.addresses_per_eni}; {DO}"
                yield f"ENI {eni.eni_id}", "LimitExceeded", why
    told = {c.token for c in records.creations}
    for eni in cloud.enis:
        age_s = now - (eni.created_at or now)
        is_free = eni.owned and eni.device_index is None and eni.creation not in told
        if is_free and age_s > GRACE_S:
            why = (
                f"it is ours, {age_s:.0f} s old and attached to nothing; 'node-network gc' "
                "deletes what nodes have left behind"
            )
            yield f"ENI {eni.eni_id}", "Leaked", why
