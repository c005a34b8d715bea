"""Quarantine: what no pod may get, because it is being given back, or was just now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reconciler.core.datapath import IpNetwork
from reconciler.core.plan import Action, Change, Plan, Verb
from reconciler.core.records import Records
from reconciler.core.release import RELEASED_REST_S, Quarantine


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be quarantined.

    Attributes:
        networks: units that are to be given back.
        held: every unit that EC2 shows on this node.
        now: seconds since the epoch.
    """

    networks: frozenset[IpNetwork]
    held: frozenset[IpNetwork]
    now: float


def plan(desired: Wanted, observed: Records) -> Plan:
    """Compare with the records, which are fresh: what a pod has got meanwhile is left to it."""
    return Plan(tuple(_begin(desired, observed)) + tuple(_end(desired, observed)))


def _begin(desired: Wanted, observed: Records) -> Iterator[Action]:
    known = {q.network for q in observed.quarantined}
    used = {c.address for c in observed.cooling}
    used |= {a for bound in observed.attachments for a in bound.addresses}
    for network in sorted(desired.networks - known, key=_order):
        if not any(address in network for address in used):
            yield Change(Verb.CREATE, Quarantine(network, desired.now), "not needed")


def _end(desired: Wanted, observed: Records) -> Iterator[Action]:
    for record in observed.quarantined:
        if record.network in desired.networks:
            continue
        if record.network in desired.held:
            yield Change(Verb.DELETE, record, "needed again")
        elif desired.now - record.since >= RELEASED_REST_S:
            yield Change(Verb.DELETE, record, "EC2 took it back")


def _order(network: IpNetwork) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen
