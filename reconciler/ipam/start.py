"""What a node keeps when it has just started, because nothing says yet how many pods it will have.

After a boot there are no records: the kubelet's pods of before come back within minutes, and what
they had is still assigned. Until then their number is no reason to give anything back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from reconciler.core.datapath import IpNetwork
from reconciler.core.facts import Eni
from reconciler.ipam.release import unit_networks

START_S = 300.0
"""Seconds after the first observation of EC2 for which what it shows is kept. After a boot the
kubelet starts its pods as fast as images and volumes come, which takes minutes on a full node."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the first observation has shown on this node.

    Attributes:
        enis: their ids.
        networks: what they held for pods.
        until: monotonic seconds; then the usual rules hold for all of it.
    """

    enis: frozenset[str] = frozenset()
    networks: frozenset[IpNetwork] = frozenset()
    until: float = -inf

    def at(self, clock: float) -> Kept:
        """Return what is still kept at these monotonic seconds."""
        return self if clock < self.until else NOTHING


NOTHING = Kept()


def keep(enis: Iterable[Eni], clock: float) -> Kept:
    """Keep what a first observation shows.

    ``clock``: monotonic seconds.
    """
    enis = tuple(enis)
    networks = frozenset(n for e in enis for n in unit_networks(e))
    return Kept(frozenset(e.eni_id for e in enis), networks, clock + START_S)
