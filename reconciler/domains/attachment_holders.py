"""Who has which namespace, link and address: none is given to two."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from reconciler.core.attachment import (
    Attachment,
    AttachmentKey,
    Intent,
    IntentState,
    netns_identity,
    netns_inode,
)
from reconciler.ipam.allocation import Supply
from reconciler.ipam.records import Records


class Holders:
    """Whose each namespace and each link is."""

    def __init__(self, held: Collection[Attachment]) -> None:
        self.held = held
        self.namespaces: dict[str | int, AttachmentKey] = {}
        self.veths: dict[str, AttachmentKey] = {}
        for attachment in held:
            self.add(attachment)

    def add(self, attachment: Attachment) -> None:
        """Take in one more.

        A living namespace is known by its inode too: it may have several paths. The inode of one
        that is gone may be used again.
        """
        self.veths[attachment.veth] = attachment.key
        if attachment.netns_alive and (inode := netns_inode(attachment.netns)):
            self.namespaces[inode] = attachment.key
        self.namespaces[attachment.netns] = attachment.key

    def of_namespace(self, intent: Intent) -> AttachmentKey | None:
        netns = netns_identity(intent.netns, intent.netns_inode)
        return self.namespaces.get(netns) or self.namespaces.get(intent.netns_inode or netns)


def find_holders(keys: Collection[AttachmentKey], observed: Records) -> frozenset[AttachmentKey]:
    """Return who has the namespaces that some pods wait to be bound in."""
    some = observed.among(keys)
    bound = {a.key for a in some.attachments}
    waiting = [
        i
        for i in some.intents
        if i.state is IntentState.WANTED and i.netns_alive and i.key not in bound
    ]
    if not waiting:
        return frozenset()
    holders = Holders(observed.attachments)
    return frozenset(holder for i in waiting if (holder := holders.of_namespace(i)))


def find_taken(
    held: Iterable[Attachment], supply: Supply, observed: Records, now: float
) -> set[int]:
    """Return the addresses that no pod may be given; ``now``: seconds since the epoch.

    By number: an address computes its hash anew each time, and each pod looks at all there are.
    """
    taken = {int(address) for a in held for address in a.addresses}
    taken.update(int(c.address) for c in observed.cooling)
    taken.update(map(int, supply.elsewhere | observed.withheld(now)))
    return taken
