"""Source disagreement: EC2 and instance metadata differ, or show less than before.

A shrinking observation is *unknown*, not gone. An address is lost only when both sources have
lacked it for a while. Until then it is kept, given to no other pod, and nothing is given back to
EC2 (amazon-vpc-cni-k8s #3824: 46 hours of a short list, then the release of a prefix in use).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reconciler.core.datapath import IpNetwork
from reconciler.core.facts import Eni
from reconciler.ipam.release import unit_networks

CONFIRM_S = 30.0
"""Seconds for which both sources must lack an item before it counts as lost."""

REPORT_S = 60.0
"""Seconds of disagreement before it is worth a condition: metadata lags behind every change."""

Item = tuple[str, IpNetwork]
"""An address as /32, or a prefix, of an ENI by its id."""


@dataclass(frozen=True, slots=True)
class Disagreements:
    """What the sources disagree about.

    Attributes:
        missing: items that EC2 does not show and that are not proved lost; since when, in
            monotonic seconds.
        unconfirmed: items that EC2 shows and metadata does not, since when.
        lost: items that neither shows any more.
    """

    missing: Mapping[Item, float]
    unconfirmed: Mapping[Item, float]
    lost: frozenset[Item]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unconfirmed)

    @property
    def since(self) -> float:
        """When the oldest began, in monotonic seconds; 0 without any."""
        return min([*self.missing.values(), *self.unconfirmed.values()], default=0.0)


NO_DISAGREEMENTS = Disagreements({}, {}, frozenset())


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

    Args:
        before: the disagreements after the previous observation.
        expected: what should be there: what pods hold and what the previous observation showed,
            without what was given back.
        shown: what EC2 shows.
        metadata: what instance metadata shows.
        now: monotonic seconds.
        unread: what is expected where a source could not be read; it is never proved lost.
    """
    missing: dict[Item, float] = {}
    lost = set()
    for item in sorted(expected | before.missing.keys(), key=_order):
        if item in shown:
            continue
        if item not in expected:
            continue  # it is not expected any more: it was given back
        since = before.missing.get(item, now)
        known = item not in metadata and item not in unread
        if item in before.lost or (known and now - since >= CONFIRM_S):
            lost.add(item)
        else:
            missing[item] = since
    unconfirmed = {i: before.unconfirmed.get(i, now) for i in sorted(shown - metadata, key=_order)}
    return Disagreements(missing, unconfirmed, frozenset(lost))


def _order(item: Item) -> tuple[str, int, int]:
    return item[0], int(item[1].network_address), item[1].prefixlen
