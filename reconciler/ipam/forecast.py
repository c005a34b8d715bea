"""How many addresses the node can still have, and when they are used up at the present rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from reconciler.ipam import pool_groups
from reconciler.ipam.cloud import PREFIX_SIZE, Cloud
from reconciler.ipam.margin import Margin
from reconciler.ipam.pool import Demand, most_addresses
from reconciler.ipam.pool_status import Pool, PoolStatus, find_pool_status

WINDOW_S = 900.0
"""Seconds of the past that make the present rate."""

LEAST_S = 300.0
"""Seconds over which the rate is taken at least: the pods of a node that has just joined all come
within seconds, and no more follow."""

STEP_S = 15.0  # seconds between two entries of the past that are kept


@dataclass(frozen=True, slots=True)
class Supply:
    """The pool of no group, in addresses, as of one pass over it.

    Attributes:
        low: below which it grows.
        aim: to which it grows, or gives back.
        high: above which it gives back.
        most: that the instance and the document allow; None while the limits are not known.
        used: that pods have, or wait for.
        left: that nothing uses: held, or to be had from EC2 within the limits and the subnets.
        enis: that the instance and the document allow; None like ``most``.
    """

    low: int
    aim: int
    high: int
    most: int | None
    used: int
    left: int
    enis: int | None


@dataclass(frozen=True, slots=True)
class Use:
    """How many addresses pods had, or waited for, at these monotonic seconds."""

    at: float
    addresses: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the last passes over the pool have shown.

    Attributes:
        supply: None until there was an observation.
        past: what was used, in the order of time.
        looked_at: monotonic seconds at which EC2 was last observed; None if it was not yet.
    """

    supply: Supply | None = None
    past: tuple[Use, ...] = ()
    looked_at: float | None = None

    def seconds_left(self, now: float) -> float | None:
        """Return seconds until what is left is used up, as ``seconds_left``; None if unknown."""
        return seconds_left(self.past, self.supply.left, now) if self.supply else None


def find_supply(desired: Pool, observed: Cloud) -> Supply:
    """Measure what an observation of EC2 leaves for further pods of no group."""
    pool = next(p for p in pool_groups.pools(desired, observed) if not p.group)
    at = find_pool_status(pool, observed)
    demand = pool.demand
    free = max(at.stock.held - demand.total, 0)
    most = enis = None
    if at.limits is not None:
        document = pool.document
        most, _ = most_addresses(document, at.limits, foreign=at.foreign, others=at.others)
        enis = (
            at.limits.enis if document.eni.max is None else min(at.limits.enis, document.eni.max)
        )
    left = free + (0 if pool.is_frozen else _reachable(pool, at))
    used = demand.assigned + demand.waiting
    return Supply(at.band.low, at.band.aim, at.band.high, most, used, left, enis)


def _reachable(pool: Pool, at: PoolStatus) -> int:
    """Return how many more addresses EC2 could give now."""
    size = PREFIX_SIZE if pool.prefixes else 1
    slots = sum(map(at.free_slots, at.enis)) + at.room_for_enis * at.slots
    homes = {e.subnet_id for e in at.enis if e.eni_id in at.fitting} | {*at.choice.subnets}
    return min(slots * size, sum(at.spaces[name].free for name in homes if name in at.spaces))


def after(past: Sequence[Use], used: int, now: float) -> tuple[Use, ...]:
    """Return the past with what is used now; of what is older than the window, only the last."""
    older = [u for u in past if u.at <= now - WINDOW_S]
    kept = [*older[-1:], *(u for u in past if u.at > now - WINDOW_S)]
    if len(kept) > 1 and kept[-1].at - kept[-2].at < STEP_S:
        kept.pop()
    return (*kept, Use(now, used))


def as_of(outlook: Outlook, margin: Margin | None, demand: Demand | None, now: float) -> Outlook:
    """Return the outlook with what is used at these monotonic seconds, as far as it is known.

    No pass over the pool is made for a demand that makes no difference to it.
    """
    supply = outlook.supply
    if supply is None or margin is None or demand is None or not margin.covers(demand):
        return outlook
    band, used = margin.band(demand), demand.assigned + demand.waiting
    more = demand.total - margin.demand.total if margin.counts else 0
    left = max(supply.left - more, 0)
    supply = replace(supply, low=band.low, aim=band.aim, high=band.high, used=used, left=left)
    return replace(outlook, supply=supply, past=after(outlook.past, used, now))


def seconds_left(past: Sequence[Use], left: int, now: float) -> float:
    """Return seconds until ``left`` addresses are used up; infinite if use does not grow.

    ``now``: monotonic seconds.
    """
    if not past:
        return inf
    start = now - WINDOW_S
    first = next((u for u in reversed(past) if u.at <= start), past[0])
    grown = past[-1].addresses - first.addresses
    return left * max(now - max(first.at, start), LEAST_S) / grown if grown > 0 else inf
