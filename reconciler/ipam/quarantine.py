"""Quarantine: units that no pod may get, because they are or were just given back."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from reconciler.core.datapath import IpNetwork
from reconciler.engine.plan import Action, Change, Plan, Verb
from reconciler.ipam.records import Records
from reconciler.ipam.release import Quarantine


@dataclass(frozen=True, slots=True)
class Wanted:
    """The units to quarantine.

    Attributes:
        networks: units that are to be given back.
        held: every unit that EC2 shows on this node.
        now: seconds since the epoch.
    """

    networks: frozenset[IpNetwork]
    held: frozenset[IpNetwork]
    now: float


def plan(desired: Wanted, observed: Records) -> Plan:
    """Compare with fresh records: a unit that a pod was given meanwhile is not quarantined."""
    return Plan(tuple(_begin(desired, observed)) + tuple(_end(desired, observed)))


def _begin(desired: Wanted, observed: Records) -> Iterator[Action]:
    known = {q.network for q in observed.quarantined}
    used = {c.address for c in observed.cooling}
    used |= {a for bound in observed.attachments for a in bound.addresses}
    for network in sorted(desired.networks - known, key=_order):
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


def _order(network: IpNetwork) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen
