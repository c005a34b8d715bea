"""The two sources of what the pool holds, EC2 and instance metadata, compared by each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from reconciler.core.datapath import IpAddress, IpNetwork, unit_of
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.pace import held_by_mac
from reconciler.ipam.records import Records
from reconciler.ipam.sources import Disagreements, Item, items, weigh

Witness = frozenset[tuple[str, IpNetwork]] | None
"""What instance metadata shows, by MAC; None if it cannot be read, which proves nothing."""


@dataclass
class Sources:
    """What both have shown so far.

    Attributes:
        clock: monotonic seconds.
        disagreements: where they disagree, as of the last observation.
        expected: what the next observation should show.
    """

    clock: Callable[[], float]
    disagreements: Disagreements = field(default_factory=Disagreements)
    expected: frozenset[Item] = frozenset()
    _macs: Mapping[str, str] = field(default_factory=dict)
    """ENIs by MAC, as metadata names them: also those that EC2 does not show any more."""
    _differing: frozenset[tuple[str, IpNetwork]] = frozenset()

    def weigh(self, records: Records, cloud: Cloud, metadata: Witness) -> None:
        """Compare an observation of EC2 with metadata, and with what was expected."""
        shown = items(cloud.enis)
        macs = {**self._macs, **{e.mac: e.eni_id for e in cloud.enis}}
        confirmed = frozenset((macs[mac], n) for mac, n in metadata or () if mac in macs)
        released = {q.network for q in records.quarantined}
        known = self.expected | self.disagreements.missing.keys()
        expected = {i for i in known if i[1] not in released}
        bound = [
            (a.eni_id, own) for a in records.attachments if a.eni_id for own in a.vpc_addresses
        ]
        expected |= {_item(eni_id, address, shown | known) for eni_id, address in bound}
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
        """Compare metadata with the last observation, and what EC2 has answered since.

        Returns:
            Whether it shows a change; and whether it shows all that EC2 has.
        """
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
