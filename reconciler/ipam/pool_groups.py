"""The pools of pod groups: one plan for each, which share what the instance has room for.

A group's pool is planned as any other: with its own subnets, security groups, warm pool, demand
and ENIs. The pool of no group has the primary ENI, and what is left of groups that are no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from reconciler.core.attachment import IntentState
from reconciler.core.datapath import IpAddress, IpNetwork, is_counted
from reconciler.core.facts import Eni
from reconciler.engine.plan import Plan
from reconciler.ipam import ec2_action as ec2
from reconciler.ipam import pool_plan
from reconciler.ipam.cloud import GROUP_TAG, Cloud
from reconciler.ipam.identity import missing, owners
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_status import Pool, find_pool_status
from reconciler.ipam.records import Records
from schemas.document import NodeNetwork
from schemas.group import PodGroup, group_of
from schemas.pool import AddressTarget

NOTHING = Demand()


def pools(desired: Pool, observed: Cloud) -> tuple[Pool, ...]:
    """Return the pool of each group, in the order in which they get ENIs.

    What a pod waits for comes before what is held for later. While one waits that no ENI can be
    had for, groups without pods hold nothing beyond what the document says.
    """
    if not desired.document.pod_groups:
        return (desired,)
    groups = [_pool_of(desired, group) for group in desired.document.pod_groups]
    rest = desired.demand
    for pool in groups:
        rest = _minus(rest, pool.demand)
    found = [replace(desired, demand=rest), *groups]
    found = [_bounded(pool, desired.demand) for pool in found]
    if any(_lacks_an_eni(pool, observed) for pool in found):
        found = [_without_surplus(pool) if pool.group else pool for pool in found]
    return tuple(sorted(found, key=lambda pool: not pool.demand.waiting))


def plan(desired: Pool, observed: Cloud) -> Plan:
    """Plan each pool; an ENI that is promised to one group the next does not get."""
    whole = Plan()
    promised: tuple[int, ...] = ()
    known = {c.token for c in desired.ec2.creations}
    for pool in pools(desired, observed):
        if pool.group and observed.primary is None:
            continue  # the pool of no group says so
        one = pool_plan.plan(replace(pool, promised=promised), observed)
        whole += one
        for action in one.actions:
            if isinstance(action, ec2.AddEni) and action.creation.token not in known:
                promised += (action.creation.device_index,)
            elif isinstance(action, ec2.AttachEni):
                promised += (action.device_index,)
    return whole


def quarantine(desired: Pool, observed: Cloud) -> frozenset[IpNetwork]:
    """Say of all pools which units no pod may get any more."""
    found = (pool_plan.quarantine(pool, observed) for pool in pools(desired, observed))
    return frozenset[IpNetwork]().union(*found)


def demand_of(records: Records, document: NodeNetwork) -> Demand:
    """Return what the pools have to cover for these records, and for which group pods wait.

    Whether a pod is bound says ``Records.demand``; this one tells those that are not apart.
    """
    lacking, _ = missing(owners(records.pods, document), records.identities)
    demand = records.demand
    if lacking:
        demand = replace(demand, waiting=demand.waiting + len(lacking))
    if not document.pod_groups:
        return demand
    bound = {a.key for a in records.attachments} - records.superseded
    names = Counter(
        group_of(i.pod, document.pod_groups)
        for i in records.intents
        if i.state is IntentState.WANTED and i.netns_alive and i.key not in bound
    )
    names.update(owner.group for owner in lacking)
    del names[""]
    return replace(demand, waiting_in=tuple(sorted(names.items())))


def demands(
    records: Records,
    demand: Demand,
    document: NodeNetwork,
    enis: Sequence[Eni],
    others: Collection[IpAddress],
) -> Mapping[str, Demand]:
    """Return the demand of each group, by name; what is left of the whole is that of no group.

    A pod counts where its address is, whatever group it would be of now.

    ``demand``: the whole. ``others``: addresses that no pod of ours has, and that count as
    assigned.
    """
    if not document.pod_groups:
        return {}
    of_eni = {e.eni_id: e.group for e in enis}
    assigned = Counter(
        of_eni.get(a.eni_id, "")
        for a in records.attachments
        if any(is_counted(own) for own in a.addresses)
    )
    grouped = [e for e in enis if e.group]
    cooling = _by_group(grouped, (c.address for c in records.cooling if is_counted(c.address)))
    assigned += _by_group(grouped, others)
    # Where its address is, as of a pod; all of an identity's are of one ENI.
    own = (i.addresses[0] for i in records.identities if any(map(is_counted, i.addresses)))
    dedicated = _by_group(grouped, own)
    waiting = dict(demand.waiting_in)
    return {
        name: Demand(
            assigned[name], cooling[name], waiting.get(name, 0), dedicated=dedicated[name]
        )
        for name in (g.name for g in document.pod_groups)
    }


def _by_group(enis: Sequence[Eni], addresses: Iterable[IpAddress]) -> Counter[str]:
    holders = (next((e.group for e in enis if e.holds(a)), "") for a in addresses)
    return Counter(name for name in holders if name)


def _pool_of(desired: Pool, group: PodGroup) -> Pool:
    """Return a group's pool: the node's, with what the group says in place of the document."""
    document = desired.document
    own: dict[str, object] = {"use_primary": False}
    if group.subnets or group.subnet_tags:
        own |= {"subnets": group.subnets, "subnet_tags": group.subnet_tags}
    if group.security_groups:
        own["security_groups"] = group.security_groups
    held = {"addresses": group.warm_pool.addresses, "enis": None, "prefixes": None}
    return replace(
        desired,
        group=group.name,
        document=document.model_copy(
            update={
                "eni": document.eni.model_copy(update=own),
                "warm_pool": document.warm_pool.model_copy(update=held),
            }
        ),
        demand=desired.ec2.demands.get(group.name, NOTHING),
        tags=tuple(sorted((*desired.tags, (GROUP_TAG, group.name)))),
        take_over=False,
    )


def _bounded(pool: Pool, whole: Demand) -> Pool:
    """Leave to a pool what pods of other groups leave of ``maxPods``."""
    most = pool.document.most_pods
    if most is None:
        return pool
    others = _minus(whole, pool.demand)
    left = max(most - others.assigned - others.waiting, 0)
    return replace(pool, document=pool.document.model_copy(update={"max_pods": left}))


def _lacks_an_eni(pool: Pool, observed: Cloud) -> bool:
    if not pool.demand.waiting:
        return False
    at = find_pool_status(pool, observed)
    return at.shortfall > 0 and not at.room_for_enis and not any(map(at.free_slots, at.enis))


def _without_surplus(pool: Pool) -> Pool:
    """Give up the ENI that a group keeps for its next pod, if it has none now."""
    target = pool.document.warm_pool.strategy
    if pool.demand.total or not isinstance(target, AddressTarget):
        return pool
    held = {"addresses": target.model_copy(update={"surplus": 0})}
    warm_pool = pool.document.warm_pool.model_copy(update=held)
    return replace(pool, document=pool.document.model_copy(update={"warm_pool": warm_pool}))


def _minus(whole: Demand, part: Demand) -> Demand:
    return Demand(
        max(whole.assigned - part.assigned, 0),
        max(whole.cooling - part.cooling, 0),
        max(whole.waiting - part.waiting, 0),
        dedicated=max(whole.dedicated - part.dedicated, 0),
    )
