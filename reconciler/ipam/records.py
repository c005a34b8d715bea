"""The records of the state directory: everything that must survive a restart."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import attrgetter, is_
from typing import ClassVar, TypeVar

from reconciler.core.attachment import (
    Attachment,
    AttachmentKey,
    Cooling,
    Intent,
    IntentState,
    is_superseded,
    netns_identity,
)
from reconciler.core.datapath import MAC_STAMP, IpAddress, is_counted, is_node_local
from reconciler.core.facts import Eni
from reconciler.engine.plan import Key, Verb
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.pool import Demand
from reconciler.ipam.release import Quarantine

WITHHELD_S = 600.0
"""Seconds for which an address that a torn record names is given to no pod: longer than any
cooldown, and than conntrack remembers what is not an open connection."""


OurRecord = Attachment | Cooling | Quarantine | Creation | EgressIdentity
"""What only this process writes."""

R = TypeVar("R", Intent, Attachment)

BY_KEY = attrgetter("key")
"""The order of records."""

Identity = tuple[str, Key]
"""Kind and key of a record."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A record of ours that could not be read, and that nothing is planned on.

    ``path``: where it is now. ``addresses``: those that could be read in it or in its name.
    ``attachment``: whose it is, by its name, if it is an attachment's: nothing new is bound to
    that one until the file is removed or a DEL has released the pod.
    """

    kind: ClassVar[str] = "unreadable-record"
    path: str
    since: float
    addresses: frozenset[IpAddress] = frozenset()
    attachment: AttachmentKey | None = None

    @property
    def key(self) -> Key:
        return (self.path,)

    def command(self, verb: Verb) -> str:
        del verb  # it is only ever put away
        return f"mv {self.path} {self.path}.released"


@dataclass(frozen=True)
class Records:
    """The records of the state directory; each kind in key order.

    Attributes:
        unreadable: intents that cannot be understood, each with the reason. Another program writes
            them; what they want is unknown.
        set_aside: records of ours that could not be read. What can be is rebuilt from the kernel.
        crowded: directories with more files than are read, and how many there are.
        unwritten: those of the records above that are known, but not on disk: their files were
            lost, or could not be written. They count as any other, and are written again.
    """

    intents: tuple[Intent, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    cooling: tuple[Cooling, ...] = ()
    quarantined: tuple[Quarantine, ...] = ()
    creations: tuple[Creation, ...] = ()
    unreadable: tuple[str, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    unwritten: frozenset[Identity] = frozenset()
    crowded: tuple[tuple[str, str], ...] = ()
    identities: tuple[EgressIdentity, ...] = ()

    def joined(self, found: Iterable[Attachment]) -> Records:
        """Return the same with attachments that only the kernel has shown.

        Absence is no release: what of a pod is in the kernel is kept whether its record can be
        written or not.
        """
        known = {a.key for a in self.attachments}
        new = [a for a in found if a.key not in known]
        if not new:
            return self
        return replace(
            self,
            attachments=tuple(sorted((*self.attachments, *new), key=BY_KEY)),
            unwritten=self.unwritten | {(a.kind, a.key) for a in new},
        )

    def among(self, keys: Collection[AttachmentKey]) -> Records:
        """Return the same with the intents and attachments of some keys only."""
        return replace(
            self,
            intents=_found(self.intents, keys),
            attachments=_found(self.attachments, keys),
        )

    def without(self, keys: Collection[AttachmentKey]) -> Records:
        """Return the same without the intents and attachments of some keys."""
        return replace(
            self,
            intents=tuple(i for i in self.intents if i.key not in keys),
            attachments=tuple(a for a in self.attachments if a.key not in keys),
        )

    def is_like(self, other: Records) -> bool:
        """Whether the records of another look are the very same objects.

        Equal ones may differ in what is not on disk, as whether a pod's namespace is there.
        """
        return all(
            mine == its and (not isinstance(mine, tuple) or all(map(is_, mine, its)))
            for mine, its in ((getattr(self, n), getattr(other, n)) for n in FIELDS)
        )

    def withheld(self, now: float) -> frozenset[IpAddress]:
        """Addresses that no pod may be given: identities', and those that a torn record names.

        ``now``: seconds since the epoch.
        """
        fresh = (s for s in self.set_aside if now - s.since < WITHHELD_S)
        torn = (address for record in fresh for address in record.addresses)
        return frozenset(a for i in self.identities for a in i.addresses).union(torn)

    @property
    def lost(self) -> tuple[OurRecord, ...]:
        if not self.unwritten:
            return ()
        ours: Iterable[OurRecord] = (
            *self.attachments,
            *self.cooling,
            *self.quarantined,
            *self.creations,
            *self.identities,
        )
        return tuple(r for r in ours if (r.kind, r.key) in self.unwritten)

    @property
    def undecided(self) -> dict[AttachmentKey, SetAside]:
        """Attachments whose record cannot be read: what they have been given is not known."""
        return {s.attachment: s for s in self.set_aside if s.attachment is not None}

    @cached_property
    def released(self) -> frozenset[AttachmentKey]:
        """Keys of which what is bound goes: given back, or of a sandbox that is no more."""
        given_back = {i.key for i in self.intents if i.state is IntentState.RELEASED}
        return frozenset(given_back | self.superseded)

    @cached_property
    def superseded(self) -> frozenset[AttachmentKey]:
        """Keys that are wanted anew, for a later sandbox than the one they are bound to."""
        intents = {i.key: i for i in self.intents}
        return frozenset(
            a.key
            for a in self.attachments
            if (intent := intents.get(a.key)) is not None and is_superseded(a, intent)
        )

    @cached_property
    def living(self) -> tuple[Attachment, ...]:
        """Attachments to keep in the kernel: all that were not given back."""
        released = self.released
        return tuple(a for a in self.attachments if a.key not in released)

    @cached_property
    def pods(self) -> frozenset[str]:
        """Names of pods that are here, or are wanted: ``namespace/name``, as far as known."""
        wanted = (i for i in self.intents if i.state is IntentState.WANTED and i.netns_alive)
        names = {a.pod for a in self.living}.union(i.pod for i in wanted)
        return frozenset(names - {""})

    @cached_property
    def resting(self) -> tuple[Cooling, ...]:
        """Addresses that cool down and that no pod has.

        A record that was restored by hand may name the address of a running pod, whose connections
        must not be ended.
        """
        if not self.cooling:
            return ()
        held = {own for a in self.living for own in a.addresses}
        return tuple(c for c in self.cooling if c.address not in held)

    @cached_property
    def unfinished(self) -> frozenset[AttachmentKey]:
        return frozenset(a.key for a in self.attachments if a.unfinished)

    @cached_property
    def demand(self) -> Demand:
        """What the pool has to cover for these records."""
        bound = {a.key for a in self.attachments} - self.superseded
        waiting = [
            i
            for i in self.intents
            if i.state is IntentState.WANTED and i.netns_alive and i.key not in bound
        ]
        # One for each pod: what is not counted, and what comes with the node, the pool need not
        # have in stock.
        assigned = sum(any(map(is_counted, a.addresses)) for a in self.attachments)
        cooling = sum(is_counted(c.address) for c in self.cooling)
        dedicated = sum(any(map(is_counted, i.addresses)) for i in self.identities)
        return Demand(assigned, cooling, len(waiting), dedicated=dedicated)


FIELDS = tuple(f.name for f in fields(Records))


def find_copies(
    attachments: Iterable[Attachment], linked: Collection[AttachmentKey]
) -> dict[AttachmentKey, AttachmentKey]:
    """Return which attachments name a link or an address that another has, and which other.

    A record was copied, or an old one restored. The attachment whose link is there counts:
    objects made for the other would be taken from a running pod.

    ``linked``: those that have a link on the host.
    """
    holders: dict[str | IpAddress, AttachmentKey] = {}
    copies = {}
    for a in sorted(attachments, key=lambda a: a.key not in linked):
        others = {holders.setdefault(what, a.key) for what in (a.veth, *a.addresses)} - {a.key}
        if others:
            copies[a.key] = min(others)
    return copies


def _found(records: tuple[R, ...], keys: Collection[AttachmentKey]) -> tuple[R, ...]:
    places = ((key, bisect_left(records, key, key=BY_KEY)) for key in sorted(keys))
    return tuple(records[p] for key, p in places if p < len(records) and records[p].key == key)


def find_unrecorded(
    pods: Mapping[AttachmentKey, str],
    addresses: Mapping[str, tuple[IpAddress, ...]],
    enis: Iterable[Eni],
    intents: Iterable[Intent],
    macs: Mapping[str, str],
) -> tuple[Attachment, ...]:
    """Rebuild attachments from what the kernel has of them.

    Absence is no release: the state directory may have been wiped, or be another one than usual,
    while pods run. A link of which no address is known is left out.

    ``addresses``: of the pod behind each host end. ``macs``: of the host ends, by name: one
    without our stamp was kept in a take-over.
    """
    paths = {i.key: netns_identity(i.netns, i.netns_inode) for i in intents if i.netns_alive}
    enis = list(enis)
    unrecorded = []
    for key, veth in sorted(pods.items()):
        found = tuple(sorted(addresses.get(veth, ()), key=is_node_local))
        if not found:
            continue
        eni = next((e for e in enis for a in found if e.holds(a)), None)
        mac = macs.get(veth, "")
        unrecorded.append(
            Attachment(
                key=key,
                netns=paths.get(key, ""),
                netns_alive=key in paths,
                addresses=found,
                eni_id=eni.eni_id if eni else "",
                veth=veth,
                kept_macs=("" if mac.startswith(MAC_STAMP) else mac, ""),
            )
        )
    return tuple(unrecorded)


def believe(
    addresses: Iterable[IpAddress], enis: Iterable[Eni], taken: Collection[IpAddress]
) -> tuple[IpAddress, ...]:
    """Return what a pod's own link says of its address; nothing if that is no proof.

    A pod may put on its link whatever it likes. So it counts only if of each family exactly one
    can be the pod's: one that an ENI holds, or that is good on this node only, and that no other
    pod has.

    ``taken``: what others have.
    """
    enis = list(enis)
    possible = [
        a
        for a in dict.fromkeys(addresses)
        if a not in taken and (is_node_local(a) or any(e.holds(a) for e in enis))
    ]
    kinds = [(a.version, is_node_local(a)) for a in possible]
    certain = len(set(kinds)) == len(kinds) and not all(map(is_node_local, possible))
    return tuple(possible) if certain else ()
