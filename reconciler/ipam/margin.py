"""The margin of a pool: the demands for which a pass over it would do nothing, and say the same.

Pods that come and go change the demand each time, and a plan of the pool looks at every address of
the node. Most demands are within the band, and then all of that says what it said before. What is
checked here once, after a pass, is that nothing but the band's arithmetic could say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.engine.plan import Plan
from reconciler.ipam import pool
from reconciler.ipam.cloud import PREFIX_SIZE, Cloud
from reconciler.ipam.pool import Band, Demand
from reconciler.ipam.pool_status import NOTHING_COUNTED, Pool, PoolStatus, find_pool_status
from reconciler.ipam.release import counted_networks
from schemas.pool import Strategy

STANDING = frozenset({"MaxPodsTooHigh", "EgressUnavailable", "SubnetWithoutFamily"})
"""Reasons of what the document asks for and the node cannot do, however many pods there are."""


@dataclass(frozen=True, slots=True)
class Margin:
    """What the pool's target depends on, besides the demand, and what is held.

    Attributes:
        demand: that was planned for.
        held: pod addresses.
        unit: the fewest that are given back together.
        per_eni: pod addresses that one more ENI would bring.
        counts: whether pods' addresses are counted at all.
    """

    demand: Demand
    strategy: Strategy
    held: int
    unit: int
    per_eni: int
    max_pods: int | None
    counts: bool

    def band(self, demand: Demand) -> Band:
        """Return the target for another demand."""
        if not self.counts:
            return NOTHING_COUNTED
        return pool.band(self.strategy, demand, per_eni=self.per_eni, max_pods=self.max_pods)

    def covers(self, demand: Demand) -> bool:
        """Whether a pass that plans for this demand would do nothing.

        A pod that waits lacks an address: why, only a pass can say. Neither may an address that a
        namespace has be given back.
        """
        if demand.waiting or demand.waiting_in or demand.dedicated != self.demand.dedicated:
            return False
        band = self.band(demand)
        keeps = self.held <= band.high or self.held - self.unit < band.aim
        return band.low <= self.held and keeps


def find_margin(desired: Pool, observed: Cloud, plan: Plan) -> Margin | None:
    """Return the margin that a pass leaves; None if something else may follow from a demand.

    ``plan``: of the last observation.
    """
    at = find_pool_status(desired, observed)
    told = {r.reason for r in plan.refusals}
    if plan.actions or plan.deferred or told - STANDING or not _is_plain(desired, at):
        return None
    sizes = [n.num_addresses for e in at.enis for n in counted_networks(e)]
    return Margin(
        desired.demand,
        desired.document.warm_pool.strategy,
        at.stock.held,
        min(sizes, default=1),
        at.slots * (PREFIX_SIZE if desired.prefixes else 1),
        desired.document.most_pods,
        desired.counts,
    )


def _is_plain(desired: Pool, at: PoolStatus) -> bool:
    """Whether nothing but the demand decides, and no single address's use does."""
    observed, ec2 = at.observed, desired.ec2
    if desired.document.pod_groups or observed.primary is None or at.limits is None:
        return False  # groups share what the instance has room for
    open_ = (ec2.quarantined, ec2.disagreements, at.pending, observed.unread)
    if any(open_) or observed.behind:
        return False
    if any(e.owned and e.device_index is None for e in observed.enis):
        return False  # an ENI that is attached to nothing goes unless an address of it is used
    if any(e.eni_id not in at.fitting and (not e.is_primary or e.pod_addresses) for e in at.enis):
        return False  # it goes as soon as none of its addresses is used
    if not desired.counts:
        return len(at.fitting) <= 1  # likewise, all but the first
    # Single addresses beside prefixes are exchanged as soon as no pod uses them.
    return not (desired.prefixes and any(e.secondaries for e in at.enis))


def within(margin: Margin | None, demand: Demand) -> bool:
    """Whether a margin is known, and a demand is within it."""
    return margin is not None and margin.covers(demand)
