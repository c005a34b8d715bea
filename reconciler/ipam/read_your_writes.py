"""Read-your-writes: what EC2 has answered to our calls outweighs a stale observation.

EC2 is eventually consistent: an observation shortly after a change may show the state before it
(EC2 Developer Guide, "Ensuring eventual consistency"). Its answers are trusted, so a stale
observation never makes us ask for the same thing again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from reconciler.core.datapath import IpNetwork, family_of
from reconciler.core.facts import Eni
from reconciler.ipam.release import unit_networks

TRUST_S = 60.0
"""Seconds for which an answer outweighs an observation: far beyond EC2's usual delay of a few."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One call's effect on one ENI.

    Attributes:
        at: monotonic seconds.
        created: the ENI as EC2 described it, for a creation.
        added, removed: addresses as /32, and prefixes.
        attached: (device index, attachment id).
        tied: it will be deleted with its instance.
        adopted: it carries our tags now.
        disowned: it no longer carries the stock plugin's.
        detached, deleted: it is, or will be.
    """

    at: float
    eni_id: str
    created: Eni | None = None
    added: frozenset[IpNetwork] = frozenset()
    removed: frozenset[IpNetwork] = frozenset()
    attached: tuple[int, str] | None = None
    tied: bool = False
    adopted: bool = False
    disowned: bool = False
    detached: bool = False
    deleted: bool = False


def overlay(enis: Iterable[Eni], answers: Iterable[Answer]) -> tuple[Eni, ...]:
    """Return the ENIs with the answers applied, in the order in which they came."""
    known = {e.eni_id: e for e in enis}
    for answer in answers:
        eni = known.get(answer.eni_id) or answer.created
        if eni is None:
            continue
        if answer.deleted:
            known.pop(answer.eni_id, None)
        else:
            known[answer.eni_id] = _changed(eni, answer)
    order = sorted(
        known.values(), key=lambda e: (e.device_index is None, e.device_index or 0, e.eni_id)
    )
    return tuple(order)


def is_behind(shown: Iterable[Eni], told: Iterable[Eni]) -> bool:
    """Whether an observation lacks what EC2 has answered that it gave.

    It may be late, or a list that ended early.

    Args:
        shown: the observation.
        told: its ``overlay``.
    """
    return bool(_units(told) - _units(shown))


def _units(enis: Iterable[Eni]) -> set[tuple[str, IpNetwork]]:
    return {(e.eni_id, n) for e in enis for n in unit_networks(e)}


def _order(network: IpNetwork) -> tuple[int, int]:
    return network.version, int(network.network_address)


def _changed(eni: Eni, answer: Answer) -> Eni:
    networks = (set(unit_networks(eni)) | answer.added) - answer.removed
    if networks != set(unit_networks(eni)):
        single = sorted(n.network_address for n in networks if n.num_addresses == 1)
        more = sorted((n for n in networks if n.num_addresses > 1), key=_order)
        counted, ipv6_prefixes = (
            [n for n in more if family_of(n).counted is c] for c in (True, False)
        )
        eni = replace(
            eni,
            secondaries=tuple(single),
            prefixes=tuple(counted),
            ipv6_prefixes=tuple(ipv6_prefixes),
        )
    if answer.attached and eni.device_index is None:
        index, attachment_id = answer.attached
        eni = replace(eni, device_index=index, attachment_id=attachment_id, status="attaching")
    if answer.tied and not eni.delete_on_termination:
        eni = replace(eni, delete_on_termination=True)
    if answer.adopted:
        eni = replace(eni, owned=True)
    if answer.disowned:
        eni = replace(eni, stock=False, stock_tags=())
    if answer.detached and eni.status in {"attaching", "attached"}:
        eni = replace(eni, status="detaching")
    return eni
