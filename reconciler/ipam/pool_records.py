"""The pool's records: units in quarantine, and creations of ENIs.

No pod may get a unit in quarantine: it is or was just given back. With a creation's record an
interrupted CreateNetworkInterface is repeated, once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from reconciler.core.datapath import IpNetwork
from reconciler.engine.plan import Action, Change, Plan, Verb
from reconciler.ipam.records import Records
from reconciler.ipam.release import Quarantine, network_order


@dataclass(frozen=True, slots=True)
class Wanted:
    """The units to quarantine.

    ``networks``: units that are to be given back. ``held``: every unit that EC2 shows on this
    node. ``now``: seconds since the epoch.
    """

    networks: frozenset[IpNetwork]
    held: frozenset[IpNetwork]
    now: float


def plan_quarantines(desired: Wanted, observed: Records) -> Plan:
    """Compare with fresh records: a unit that a pod was given meanwhile is not quarantined."""
    return Plan(tuple(_begin(desired, observed)) + tuple(_end(desired, observed)))


def _begin(desired: Wanted, observed: Records) -> Iterator[Action]:
    known = {q.network for q in observed.quarantined}
    used = {c.address for c in observed.cooling}
    used |= {a for bound in observed.attachments for a in bound.addresses}
    used |= {a for identity in observed.identities for a in identity.addresses}
    for network in sorted(desired.networks - known, key=network_order):
        if not any(address in network for address in used):
            yield Change(Verb.CREATE, Quarantine(network, desired.now), "not needed")


def ask(networks: Collection[IpNetwork], observed: Records, now: float) -> Plan:
    """Record, before the call, that EC2 is asked to take networks back.

    If the process dies before the answer, an observation that shows them may be an old one.
    """
    return Plan(
        tuple(
            Change(Verb.UPDATE, replace(q, asked=now), "EC2 is asked to take it back", q)
            for q in observed.quarantined
            if q.network in networks
        )
    )


def _end(desired: Wanted, observed: Records) -> Iterator[Action]:
    for record in observed.quarantined:
        bounded = record.bounded(desired.now)
        if bounded != record:
            yield Change(Verb.UPDATE, bounded, "the clock was set back", record)
        elif record.network in desired.held:
            if record.network not in desired.networks and not record.is_pending(desired.now):
                yield Change(Verb.DELETE, record, "needed again")
        elif not record.gone:
            gone = replace(record, gone=desired.now)
            yield Change(Verb.UPDATE, gone, "EC2 shows it no more", record)
        elif not record.is_pending(desired.now):
            yield Change(Verb.DELETE, record, "EC2 took it back")


def plan_given_again(added: Collection[IpNetwork], observed: Records) -> Plan:
    """End the quarantine of what EC2 has just given again: it picks the lowest free address.

    Its answer to an assignment is newer than any list that an old observation may show. It counts
    only for what an observation has lacked meanwhile: or else the release may still be on its way.
    """
    again = (q for q in observed.quarantined if q.gone and q.network in added)
    return Plan(tuple(Change(Verb.DELETE, q, "EC2 gave it again") for q in again))


WINDOW_S = 3600.0
"""Seconds for which a record is kept: creations of that time count against the node's limit."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What EC2 shows of creations.

    ``tokens``: of every ENI that EC2 shows on this node. ``now``: seconds since the epoch.
    """

    tokens: frozenset[str]
    now: float


def plan_creations(desired: Seen, observed: Records) -> Plan:
    """Finish the records of ENIs that were seen; forget those that are old.

    A record from the future was written before the clock was set back. It is dated now, or it
    would forbid creations until the clock has caught up.
    """
    actions: list[Action] = []
    for record in observed.creations:
        if desired.now - record.at >= WINDOW_S:
            actions.append(Change(Verb.DELETE, record, "an hour old"))
        elif record.token in desired.tokens and not record.done:
            done = replace(record, done=True, at=min(record.at, desired.now))
            actions.append(Change(Verb.UPDATE, done, "its ENI was seen", record))
        elif record.at > desired.now:
            moved = replace(record, at=desired.now)
            actions.append(Change(Verb.UPDATE, moved, "the clock was set back", record))
    return Plan(tuple(actions))
