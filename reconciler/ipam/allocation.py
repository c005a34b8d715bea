"""Which addresses a pod can get: from which ENI, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from reconciler.core.attachment import AttachmentKey
from reconciler.core.datapath import FAMILIES, IpAddress, IpNetwork, family_of
from reconciler.core.facts import Eni


@dataclass(frozen=True, slots=True)
class Unexplained:
    """A host end of ours that no record explains, and of which no address is known."""

    key: AttachmentKey
    veth: str
    mac: str


@dataclass(frozen=True, slots=True)
class Supply:
    """The addresses that pods can get.

    Attributes:
        enis: that pods of no group get addresses of.
        grouped: those of pod groups, by name.
        families: of which each pod gets one address of its ENI, in this order.
        egress: of which it gets one that is good on this node only.
        elsewhere: addresses that pods of the stock plugin's hold.
        occupied: networks that the host takes for its own, each with where that is said.
        reserved: networks of which the document says that no pod gets any address.
        unread: what those pods hold is not known, so nothing is given.
        unexplained: links of ours whose address is unknown, so nothing is given either.
    """

    enis: tuple[Eni, ...]
    families: tuple[str, ...] = ("ipv4",)
    egress: tuple[str, ...] = ()
    elsewhere: frozenset[IpAddress] = frozenset()
    occupied: Mapping[IpNetwork, str] = field(default_factory=dict)
    reserved: frozenset[IpNetwork] = frozenset()
    unread: bool = False
    unexplained: tuple[Unexplained, ...] = ()
    grouped: Mapping[str, tuple[Eni, ...]] = field(default_factory=dict)

    def of(self, group: str) -> Supply:
        """Return what the pods of a group can get; "" is that of no group."""
        return replace(self, enis=self.grouped.get(group, ())) if group else self


def lacking(supply: Supply) -> str:
    """Name the families that no ENI has a prefix of."""
    held = {family_of(n).name for e in supply.enis for n in e.ipv6_prefixes}
    missing = [n for n in supply.families if not FAMILIES[n].counted and n not in held]
    return " and ".join(missing)


def offers(
    supply: Supply, taken: Collection[int], leaving: Collection[IpNetwork]
) -> Iterator[tuple[Eni, tuple[IpAddress, ...]]]:
    """Yield what a pod can get, lowest first: an ENI, and one address of each family.

    All addresses of a pod are of one ENI, so that it leaves by the same in every family.
    """
    local = [_hosts(FAMILIES[name].node_local, taken, ()) for name in supply.egress]
    for place, eni in enumerate(supply.enis):
        earlier = supply.enis[:place]
        others = {n for e in earlier for n in e.ipv6_prefixes}
        whole = [n for n in eni.ipv6_prefixes if n not in others]
        streams = [
            _not_offered(_held(name, eni, whole, taken, leaving), earlier)
            for name in supply.families
        ]
        for addresses in zip(*streams, *local, strict=False):
            yield eni, addresses


def _not_offered(free: Iterable[IpAddress], earlier: Collection[Eni]) -> Iterator[IpAddress]:
    """Leave out what was offered: during a move two ENIs may show the same.

    An ENI may hold hundreds; they are looked through only as far as they are asked for.
    """
    return (a for a in free if not any(e.holds(a) for e in earlier))


def _held(
    family: str,
    eni: Eni,
    whole: Iterable[IpNetwork],
    taken: Collection[int],
    leaving: Collection[IpNetwork],
) -> Iterator[IpAddress]:
    """Yield what an ENI has free of a family: single addresses, then those of prefixes."""
    version = FAMILIES[family].version
    own = (a for a in eni.secondaries if int(a) not in taken and a.version == version)
    single = (a for a in own if not any(a in n for n in leaving))
    prefixes = (_free(p, taken, leaving) for p in eni.prefixes if p.version == version)
    networks = (_hosts(n, taken, leaving) for n in whole if n.version == version)
    return chain(single, *prefixes, *networks)


def _free(
    network: IpNetwork, taken: Collection[int], leaving: Collection[IpNetwork], spared: int = 0
) -> Iterator[IpAddress]:
    """Yield a network's addresses, but for some at both ends; never all of them at once.

    What leaves is stepped over: it may be most of 2^48 addresses.
    """
    first = int(network.network_address)
    start, end = first + spared, first + network.num_addresses - spared
    gone = sorted(
        (int(n.network_address), int(n.broadcast_address) + 1)
        for n in leaving
        if n.version == network.version and n.overlaps(network)
    )
    for until, then in (*gone, (end, end)):
        yield from (network[n - first] for n in range(start, min(until, end)) if n not in taken)
        start = max(start, then)


def _hosts(
    network: IpNetwork, taken: Collection[int], leaving: Collection[IpNetwork]
) -> Iterator[IpAddress]:
    """Leave out the first and the last, which are no host's."""
    return _free(network, taken, leaving, spared=1)
