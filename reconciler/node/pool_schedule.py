"""What passes over the pool leave to the next: when it is due, and what the sources have shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from reconciler.core.datapath import IpAddress, IpNetwork, unit_of
from reconciler.engine.backoff import Delays
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.pace import (
    UNFINISHED_S,
    Left,
    held_by_mac,
    observe_after_s,
    plan_after_s,
)
from reconciler.ipam.records import Records
from reconciler.ipam.sources import Disagreements, Item, items, weigh
from reconciler.ipam.start import NOTHING, Kept, keep

SHRINK_S = 30.0
"""Seconds after a growth for which nothing else is chosen to be given back, so that pods that come
and go all the time do not make addresses do the same."""

HEAR_S = Delays(0.25)
"""Until metadata, which costs nothing and follows within seconds, is read for EC2's answers."""


@dataclass
class PoolSchedule:
    """What the last passes over the pool have left for later. Times are monotonic seconds."""

    clock: Callable[[], float]  # returns them
    calls: CallBackoffs = field(
        default_factory=CallBackoffs
    )  # EC2 actions that are not called for now
    left: Left = field(default_factory=Left)  # what the last observation has left open
    failed: bool = False  # the last one was not good enough to plan on again
    unfinished: bool = False  # an address or an ENI waits for its time to go
    has_called: bool = False  # the last pass has called EC2
    # something would be given back, were the last growth not so recent
    waits_to_shrink: bool = False
    readings: int = 0  # of metadata since EC2 was last called, those without an answer too
    resync_s: float = 0.0  # the document's ``reconcile.ec2Resync``
    observed_at: float = 0.0
    called_at: float = float("-inf")
    grown_at: float = float("-inf")

    @property
    def is_unconfirmed(self) -> bool:
        """Whether EC2 and metadata differ by the last observation: nothing is given back then."""
        left = self.left
        return left.behind or left.disagreeing

    @property
    def is_pending(self) -> bool:
        """Whether something is not needed and cannot be given back yet, or must not be."""
        return self.is_unconfirmed or self.waits_to_shrink

    @property
    def hear_after_s(self) -> float:
        """Seconds until metadata is worth reading again for what it has not shown yet."""
        return HEAR_S.after(self.readings + 1) if self.is_unconfirmed else float("inf")

    @property
    def due_s(self) -> float:
        """Seconds until an observation is due, or something can be tried again."""
        now, left = self.clock(), self.left
        ends = [r.ends(waiting=left.waiting) for r in self.calls.by_scope.values()]
        waits = [end - now for end in ends if end > now]
        waits.append(self._observe_at(left, self.resync_s) - now)
        if self.unfinished:
            waits.append(UNFINISHED_S)
        if self.waits_to_shrink:
            waits.append(self.grown_at + SHRINK_S - now)
        if self.has_called:
            waits.append(self._changed_at + plan_after_s(left) - now)
        return max(min(waits), 1.0)

    def leave(self, left: Left) -> None:
        """Remember what an observation has left open."""
        self.left = left

    def postpones_shrinking(self, *, wanted: bool) -> bool:
        """Whether what is wanted to be given back must wait, because the pool has just grown."""
        self.waits_to_shrink = wanted and self.clock() < self.grown_at + SHRINK_S
        return self.waits_to_shrink

    def needs_observation(self, left: Left, resync_s: float) -> bool:
        """Whether the last observation, with what it has ``left`` open, may not be planned on."""
        return self.failed or self.clock() >= self._observe_at(left, resync_s)

    def note_reading(self) -> None:
        """Metadata is being read."""
        self.readings += 1

    def note_calls(self, *, grows: bool) -> None:
        """EC2 has been called; some of it adds to the pool."""
        self.called_at, self.readings = self.clock(), 0
        if grows:
            self.grown_at = self.clock()

    @property
    def _changed_at(self) -> float:
        """When it became known what the pool has: by a look, or by EC2's answers."""
        return max(self.observed_at, self.called_at)

    def _observe_at(self, left: Left, resync_s: float) -> float:
        by_look = self.observed_at + observe_after_s(replace(left, behind=False), resync_s)
        return min(by_look, self._changed_at + observe_after_s(left, resync_s))


Witness = frozenset[tuple[str, IpNetwork]] | None
"""What instance metadata shows, by MAC; None if it cannot be read, which proves nothing."""


@dataclass
class Sources:
    """What EC2 and metadata have shown so far."""

    clock: Callable[[], float]  # monotonic seconds
    is_start: bool = False  # whether no earlier process of this boot has left an observation
    kept: Kept = NOTHING  # what the first observation has shown, at such a start
    # where they disagree, as of the last observation
    disagreements: Disagreements = field(default_factory=Disagreements)
    expected: frozenset[Item] = frozenset()  # what the next observation should show
    _macs: Mapping[str, str] = field(default_factory=dict)
    """ENIs by MAC, as metadata names them: also those that EC2 does not show any more."""
    _differing: frozenset[tuple[str, IpNetwork]] = frozenset()

    def weigh(self, records: Records, cloud: Cloud, metadata: Witness) -> None:
        """Compare an observation of EC2 with metadata, and with what was expected."""
        if self.is_start:
            self.is_start = False
            self.kept = NOTHING if records.attachments else keep(cloud.enis, self.clock())
        shown = items(cloud.enis)
        macs = {**self._macs, **{e.mac: e.eni_id for e in cloud.enis}}
        confirmed = frozenset((macs[mac], n) for mac, n in metadata or () if mac in macs)
        released = {q.network for q in records.quarantined}
        known = self.expected | self.disagreements.missing.keys()
        expected = {i for i in known if i[1] not in released}
        bound = [(a.eni_id, own) for a in records.attachments for own in a.vpc_addresses]
        expected |= {_item(eni, address, shown | known) for eni, address in bound if eni}
        holders = {eni_id for eni_id, _ in expected}
        self._macs = {mac: eni_id for mac, eni_id in macs.items() if eni_id in holders}
        # What an ENI holds that cannot be read is not known, so none of it is lost; nor is
        # anything while there is no second witness.
        unread = {u.name for u in cloud.unread_enis}
        everything = metadata is None or "" in unread
        kept = frozenset(i for i in expected if everything or i[0] in unread)
        self.disagreements = weigh(
            self.disagreements,
            expected=frozenset(expected),
            shown=shown,
            metadata=confirmed,
            now=self.clock(),
            unread=kept,
        )
        self._differing = held_by_mac(cloud) ^ (metadata or frozenset())

    def note_change(self, before: Cloud, after: Cloud) -> None:
        """Remember what has become known of the pool: that metadata lacks it is no news."""
        self._differing |= held_by_mac(after) ^ held_by_mac(before)

    def expect(self, cloud: Cloud) -> None:
        """Expect the next observation to show what this one does, and what it misses."""
        self.expected = items(cloud.enis) | self.disagreements.missing.keys()

    def hear(self, cloud: Cloud, metadata: Witness) -> tuple[bool, bool]:
        """Say whether metadata shows a change; and whether it shows all that EC2 has."""
        shown = metadata or frozenset()
        coming = held_by_mac(cloud, "attaching")
        differing = (held_by_mac(cloud) ^ shown) - coming
        known, self._differing = self._differing, differing
        same = not differing and coming <= shown and not self.disagreements.missing
        return not differing <= known, same

    def confirm(self) -> None:
        """Metadata has shown what it lacked."""
        self.disagreements = replace(self.disagreements, unconfirmed={})


def _item(eni_id: str, address: IpAddress, known: Iterable[Item]) -> Item:
    """Return the unit a bound address belongs to: a known prefix, or itself."""
    for holder, network in known:
        if holder == eni_id and address in network:
            return holder, network
    return eni_id, unit_of(address)
