"""The pool and the egress in words: what decides, with its numbers."""

from __future__ import annotations

from reconciler.core.datapath import IpAddress, family_of
from reconciler.core.facts import Node
from reconciler.core.ranges import find
from reconciler.egress import destinations, rules
from reconciler.egress.destinations import Egress
from reconciler.ipam import shortage
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.group_cost import cost
from reconciler.ipam.pool import capacity, most_addresses
from reconciler.ipam.pool_groups import pools
from reconciler.ipam.pool_status import Pool, PoolStatus, find_pool_status
from schemas.document import NodeNetwork
from schemas.snat import SnatPolicy


def explain_pools(desired: Pool, observed: Cloud) -> list[str]:
    """Return the same as ``explain_pool`` of each group's pool, in the order they are planned."""
    limits = desired.limits or observed.limits
    kind = desired.node.instance_type
    lines = list(cost(desired.document, kind, limits).lines) if limits else []
    for pool in pools(desired, observed):
        own = explain_pool(pool, find_pool_status(pool, observed))
        lines += [f"group {pool.group}:", *(f"  {line}" for line in own)] if pool.group else own
    return lines


def explain_pool(desired: Pool, at: PoolStatus) -> list[str]:
    """Return what is wanted, what is held, what follows, and which term binds."""
    band, stock, demand = at.band, at.stock, desired.demand
    wanted = f"wanted: at least {band.low}, aim {band.aim}, at most {band.high} addresses"
    terms = [
        f"{value:>6}  {text}{'   <- binds' if name == band.binds else ''}"
        for name, value, text in band.terms
    ]
    leaving = sum(u.size for u in stock.quarantined)
    allocatable = stock.held - demand.assigned - demand.of_no_pod
    dedicated = f" + dedicated {demand.dedicated}" if demand.dedicated else ""
    held = (
        f"held: {stock.held} = allocatable {allocatable} + assigned {demand.assigned} "
        f"+ cooling {demand.cooling}{dedicated}; quarantined besides: {leaving}"
    )
    lines = [wanted, *terms, held]
    if at.limits and (desired.group or at.others):
        count, text = most_addresses(
            desired.document, at.limits, foreign=at.foreign, others=at.others
        )
        lines.append(f"limits: {desired.node.instance_type} allows {text} = {count} addresses")
    elif at.limits:
        found = capacity(desired.document, at.limits, foreign=at.foreign)
        lines.append(
            f"limits: {desired.node.instance_type} serves {found.pods} pods: {found.text}"
        )
    else:
        lines.append(f"limits: what {desired.node.instance_type} allows is not known")
    for name in at.choice.subnets:
        space = at.spaces[name]
        blocks = f", {space.blocks} whole /28" if desired.prefixes else ""
        known = at.observed.subnets[name].is_described
        most = "" if known else " at most: EC2 has not been asked yet"
        lines.append(f"subnet {name}: {space.free} free{blocks}{most}")
    lines += [f"subnet {name}: not used: {reason}" for name, reason in at.choice.rejected]
    lines += [f"{r.subject}: {r.message}" for r in shortage.unread(at.observed.unread)]
    if desired.delegates:  # these prefixes are not counted
        prefixes = [f"{e.eni_id} {n}" for e in at.enis for n in e.ipv6_prefixes]
        some = ", ".join(prefixes) or "no prefix yet"
        lines.append(f"ipv6: {some}; a prefix serves any number of pods")
    return [*lines, _verdict(at)]


def explain_address(
    snat: SnatPolicy, egress: Egress, node: Node, destination: IpAddress, now: float
) -> list[str]:
    """Return whose address a destination sees, why, and how old what is known of sources is.

    ``now``: seconds since the epoch.
    """
    family = family_of(destination)
    ranges = destinations.untranslated(snat, egress, node.vpc_cidrs, family)
    if find(ranges, destination):
        why = destinations.why_kept(snat, egress, node.vpc_cidrs, destination)
        lines = [f"{destination} sees the pod's own address{why}"]
    else:
        why = destinations.why_translated(snat, egress, destination)
        lines = [f"{destination} sees the node's address{why}"]
    known = egress.by_name
    for name in destinations.named(snat):
        source = known.get(name)
        if source is None or source.looked_at is None:
            lines.append(f"{name}: not known yet")
            continue
        count, age = len(source.entries), max(now - source.looked_at, 0.0)
        lines.append(f"{name}: {count} CIDRs, as EC2 told {age:.0f} s ago")
    issues = destinations.find_issues(snat, egress, now)
    return [*lines, *(f"! {issue}" for issue in issues)]


WORDS = {
    "pod": "the pod's own address",
    "node": "the node's address",
    "dedicated": "an address of the namespace's own on each node",
}


def explain_egress_rules(
    document: NodeNetwork, egress: Egress, node: Node, destination: IpAddress, now: float
) -> list[str]:
    """Return which namespaces' pods a destination sees otherwise, by the document's rules.

    ``now``: seconds since the epoch.
    """
    snat, services = document.snat, document.routing.external_service_cidrs
    about = rules.covering(snat.rules, egress, node.vpc_cidrs, services, destination)
    lines = [
        f"namespaces {rule.namespace}: {destination} sees {WORDS[rule.identity]}, by "
        f"snat.rules[{place}] {why}"
        for place, rule, why in about
    ]
    issues = destinations.find_issues_of_rules(snat, egress, now)
    return [*lines, *(f"! {issue}" for issue in issues)]


def _verdict(at: PoolStatus) -> str:
    held, band = at.stock.held + at.coming, at.band
    if at.shortfall > 0:
        less = held - at.counted
        how = f"{held} - {less} to be exchanged = " if less else ""
        return f"so: {how}{at.counted} < {band.low}: grow by {at.shortfall}"
    if held > band.high:
        return (
            f"so: {held} > {band.high}: give back down to {band.aim}, what is free and proved so"
        )
    return f"so: {band.low} <= {held} <= {band.high}: nothing to do"
