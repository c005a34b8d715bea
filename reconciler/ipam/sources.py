"""An observation of EC2 weighed against EC2's own answers, and against instance metadata.

Read-your-writes: EC2 is eventually consistent, and an observation shortly after a change may show
the state before it (EC2 Developer Guide, "Ensuring eventual consistency"). Its answers are
trusted, so a stale observation never makes us ask for the same thing again.

Source disagreement: a shrinking observation is *unknown*, not gone. An address is lost only when
EC2 and metadata have both lacked it for a while. Until then it is kept, given to no other pod, and
nothing is given back to EC2 (amazon-vpc-cni-k8s #3824: 46 hours of a short list, then the release
of a prefix in use).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.core.datapath import IpNetwork, family_of
from reconciler.core.facts import Eni
from reconciler.ipam.release import network_order, unit_networks

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
        changed: what else of the ENI it set, by field.
    """

    at: float
    eni_id: str
    created: Eni | None = None
    added: frozenset[IpNetwork] = frozenset()
    removed: frozenset[IpNetwork] = frozenset()
    attached: tuple[int, str] | None = None
    detached: bool = False
    deleted: bool = False
    changed: Mapping[str, Any] = field(default_factory=dict)  # fields of ``Eni``


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

    def order(eni: Eni) -> tuple[bool, int, str]:
        return eni.device_index is None, eni.device_index or 0, eni.eni_id

    return tuple(sorted(known.values(), key=order))


def is_behind(shown: Iterable[Eni], told: Iterable[Eni]) -> bool:
    """Whether an observation lacks what EC2 has answered that it gave.

    It may be late, or a list that ended early.
    """
    return bool(_units(told) - _units(shown))


def _units(enis: Iterable[Eni]) -> set[tuple[str, IpNetwork]]:
    return {(e.eni_id, n) for e in enis for n in unit_networks(e)}


def _changed(eni: Eni, answer: Answer) -> Eni:
    networks = (set(unit_networks(eni)) | answer.added) - answer.removed
    if networks != set(unit_networks(eni)):
        single = sorted(n.network_address for n in networks if n.num_addresses == 1)
        more = sorted((n for n in networks if n.num_addresses > 1), key=network_order)
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
    if answer.changed:
        eni = replace(eni, **answer.changed)
    if answer.detached and eni.status in {"attaching", "attached"}:
        eni = replace(eni, status="detaching")
    return eni


CONFIRM_S = 30.0
"""Seconds for which both sources must lack an item before it counts as lost."""

REPORT_S = 60.0
"""Seconds of disagreement before it is worth a condition: metadata lags behind every change."""

Item = tuple[str, IpNetwork]
"""An address as /32, or a prefix, of an ENI by its id."""


@dataclass(frozen=True, slots=True)
class Disagreements:
    """What the sources disagree about.

    ``missing``: items that EC2 does not show and that are not proved lost; since when, in
    monotonic seconds. ``unconfirmed``: items that EC2 shows and metadata does not, since when.
    """

    missing: Mapping[Item, float] = field(default_factory=dict)
    unconfirmed: Mapping[Item, float] = field(default_factory=dict)
    lost: frozenset[Item] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unconfirmed)

    @property
    def since(self) -> float:
        """When the oldest began, in monotonic seconds; 0 without any."""
        return min([*self.missing.values(), *self.unconfirmed.values()], default=0.0)


def items(enis: Iterable[Eni]) -> frozenset[Item]:
    """Return what ENIs that serve pods hold."""
    return frozenset((e.eni_id, n) for e in enis if e.serves_pods for n in unit_networks(e))


def weigh(
    before: Disagreements,
    *,
    expected: frozenset[Item],
    shown: frozenset[Item],
    metadata: frozenset[Item],
    now: float,
    unread: frozenset[Item] = frozenset(),
) -> Disagreements:
    """Compare the sources with each other and with what was expected.

    ``expected``: what pods hold and the previous observation showed, without what was given back.
    ``unread``: what is expected where a source could not be read; it is never proved lost.
    ``now``: monotonic seconds.
    """
    missing: dict[Item, float] = {}
    lost = set()
    for item in sorted(expected | before.missing.keys(), key=_order):
        if item in shown or item not in expected:
            continue  # what is not expected any more was given back
        since = before.missing.get(item, now)
        known = item not in metadata and item not in unread
        if item in before.lost or (known and now - since >= CONFIRM_S):
            lost.add(item)
        else:
            missing[item] = since
    unconfirmed = {i: before.unconfirmed.get(i, now) for i in sorted(shown - metadata, key=_order)}
    return Disagreements(missing, unconfirmed, frozenset(lost))


def _order(item: Item) -> tuple[str | int, ...]:
    return item[0], *network_order(item[1])
