"""What the node gives back to EC2, and what proves that it is unused.

Nothing is released on absence. A unit is *free* when EC2 shows it and no pod, cooldown, route or
connection in the kernel holds any of its addresses. A unit to give back is first recorded as
quarantined, so that no pod can get it; then EC2 is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.datapath import IpAddress, IpNetwork, host_network
from reconciler.core.facts import Eni
from reconciler.engine.plan import Action, Key, Verb
from reconciler.ipam.ec2_action import DetachEni, ReleaseAddresses, ReleasePrefixes
from reconciler.ipam.pool import Band

RELEASED_WAIT_S = 120.0
"""Seconds for which an address stays quarantined after EC2 was last asked to take it back, and
after EC2 has stopped showing it: an old answer of EC2 may still show it as ours
(amazon-vpc-cni-k8s #3887)."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A unit that no pod may get, because it is or was just given back.

    Attributes:
        network: a single address as /32, or a prefix.
        since: seconds since the epoch.
        asked: when EC2 was last asked to take it back, recorded before the call, because its
            answer may be lost. 0 if it was not asked.
        gone: when an observation of EC2 first lacked it; 0 while EC2 shows it.
    """

    kind: ClassVar[str] = "quarantine"
    network: IpNetwork
    since: float
    asked: float = 0.0
    gone: float = 0.0

    def is_pending(self, now: float) -> bool:
        """Whether an observation that shows it may be older than its release.

        ``now``: seconds since the epoch.
        """
        last = max(self.asked, self.gone)
        return last > 0 and now - last < RELEASED_WAIT_S

    def bounded(self, now: float) -> Quarantine:
        """Return the same without times that have not come yet: the clock was set back."""
        times = (min(at, now) for at in (self.since, self.asked, self.gone))
        return Quarantine(self.network, *times)

    @property
    def key(self) -> Key:
        return network_order(self.network)

    def command(self, verb: Verb) -> str:
        words = {Verb.CREATE: "begin", Verb.UPDATE: "go on with", Verb.DELETE: "end"}
        return f"{words[verb]} quarantine of {self.network}"


def network_order(network: IpNetwork) -> tuple[int, int, int]:
    """Order by family, number, length."""
    return network.version, int(network.network_address), network.prefixlen


@dataclass(frozen=True, slots=True)
class Unit:
    """What is given back as one: a single address, or a whole prefix."""

    eni: Eni
    network: IpNetwork

    @property
    def size(self) -> int:
        return self.network.num_addresses

    @property
    def is_prefix(self) -> bool:
        return self.size > 1


@dataclass(frozen=True, slots=True)
class Stock:
    """What the node holds, by what may be done with it.

    ``free``: units of which no address is used, quarantined ones left out; in the order in which
    they are given back. ``held``: addresses, quarantined ones left out. ``exchangeable``: free
    units of a kind or in a place that the document does not want.
    """

    free: tuple[Unit, ...]
    quarantined: tuple[Unit, ...]
    held: int
    exchangeable: tuple[Unit, ...]

    @property
    def settled(self) -> int:
        """Addresses held that need not be exchanged for others."""
        return self.held - sum(u.size for u in self.exchangeable)


def take_stock(
    enis: Iterable[Eni],
    *,
    used: Collection[IpAddress],
    quarantined: Collection[IpNetwork],
    unwanted: Callable[[Unit], bool] = lambda _: False,
    prefixes: bool = False,
) -> Stock:
    """Sort what the node's ENIs hold.

    ``used``: addresses that a pod, a cooldown, a route or a connection holds. ``unwanted``: the
    unit is exchanged for another one as soon as it is free. ``prefixes``: the kind the document
    prefers, and so gives back last: else a prefix would be given back only to be asked for again.
    """
    enis = list(enis)
    units = [Unit(e, n) for e in enis for n in counted_networks(e)]
    free = [u for u in units if not any(a in used for a in u.network)]
    leaving = [u for u in free if u.network in quarantined]
    staying = [u for u in free if u.network not in quarantined]
    pods = {e.eni_id: sum(a in used for a in e.pod_addresses) for e in enis}

    def order(unit: Unit) -> tuple[object, ...]:
        """Unwanted first, then the other kind, then by how soon its ENI can be emptied."""
        index = unit.eni.device_index or 0
        return (
            not unwanted(unit),
            unit.is_prefix == prefixes,
            unit.eni.is_primary,
            pods[unit.eni.eni_id],
            -index,
            -int(unit.network.network_address),
        )

    staying.sort(key=order)
    held = sum(u.size for u in units) - sum(u.size for u in leaving)
    exchangeable = tuple(u for u in staying if unwanted(u))
    return Stock(tuple(staying), tuple(leaving), held, exchangeable)


def counted_networks(eni: Eni) -> tuple[IpNetwork, ...]:
    """Return what an ENI holds in stock: single addresses as /32, then prefixes."""
    return (*(host_network(a) for a in eni.secondaries), *eni.prefixes)


def unit_networks(eni: Eni) -> tuple[IpNetwork, ...]:
    """Return all that an ENI holds for pods, uncounted prefixes included."""
    return (*counted_networks(eni), *eni.ipv6_prefixes)


def holds_used(eni: Eni, used: Collection[IpAddress]) -> bool:
    """Whether an ENI holds any address that is used."""
    return any(eni.holds(a) for a in used)


def pick(
    stock: Stock,
    band: Band,
    *,
    slots_needed: int = 0,
    growable: Collection[str] = (),
    maybe_released: Collection[IpNetwork] = (),
) -> frozenset[IpNetwork]:
    """Choose the units to quarantine, given those that are.

    Below ``low`` quarantined units come back first: that costs no call. Above ``high`` free units
    go until one more would lead below ``aim``. Free units of the unwanted kind go as soon as the
    rest reaches ``low`` without them, or as many of them as slots are needed for the other kind.

    ``slots_needed``: slots that units of the wanted kind need and no ENI has free; ``growable``:
    ids of ENIs whose slots they could have. ``maybe_released``: quarantined networks that EC2 may
    have taken back although it shows them: they do not come back yet.
    """
    chosen = list(stock.quarantined)
    held = stock.held
    if held < band.low:
        back = [u for u in chosen if u.network not in maybe_released]
        back.sort(key=lambda u: (u.eni.device_index or 0, int(u.network.network_address)))
        while back and held < band.aim:
            held += back[0].size
            chosen.remove(back.pop(0))
        return frozenset(u.network for u in chosen)
    exchangeable = stock.exchangeable
    if exchangeable and stock.settled >= band.low:
        chosen += exchangeable
        held -= sum(u.size for u in exchangeable)
    elif exchangeable:
        room = [u for u in exchangeable if u.eni.eni_id in growable and not u.is_prefix]
        room = room[:slots_needed]
        chosen += room
        held -= sum(u.size for u in room)
    if held > band.high:
        for unit in stock.free:
            if unit not in chosen and held - unit.size >= band.aim:
                chosen.append(unit)
                held -= unit.size
    return frozenset(u.network for u in chosen)


def given_back(action: Action, enis: Iterable[Eni]) -> frozenset[IpNetwork]:
    """Return what an action asks EC2 to take from this instance; empty for most actions."""
    match action:
        case ReleaseAddresses():
            return frozenset(map(host_network, action.units))
        case ReleasePrefixes():
            return frozenset(action.units)
        case DetachEni():
            gone = (e for e in enis if e.eni_id == action.eni_id)
            return frozenset(n for e in gone for n in unit_networks(e))
        case _:
            return frozenset()
