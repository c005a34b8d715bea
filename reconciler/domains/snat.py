"""Source NAT: which destinations see a pod's own address.

The whole policy comes down to one set of ranges for each family. Its contents are data, so that
no mode, exclusion or VPC CIDR ever changes a rule: the ruleset asks only "is it in the set?".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from reconciler.core.datapath import Family, IpAddress, IpNetwork, family_of
from reconciler.core.ranges import Range, coalesce, complement, unite
from reconciler.domains.inputs import Inputs


def untranslated(inputs: Inputs, family: Family) -> tuple[Range, ...]:
    """Return the destinations that see pods' own addresses, coalesced.

    A family without private addresses is never translated: a pod's is as good as the node's.
    """
    snat = inputs.document.snat
    if snat.mode == "external" or not family.private:
        return coalesce([family.everything])
    kept = (*inputs.node.vpc_cidrs, *snat.exclude_cidrs)
    return _untranslated(kept, snat.only_cidrs, family)


@lru_cache(maxsize=1)
def _untranslated(
    cidrs: tuple[IpNetwork, ...], only: tuple[IpNetwork, ...] | None, family: Family
) -> tuple[Range, ...]:
    """Return the ranges; remembered, because 10,000 take tenths of a second in each pass."""
    kept = coalesce(c for c in cidrs if c.version == family.version)
    if only is None:
        return kept
    chosen = coalesce(c for c in only if c.version == family.version)
    return unite((*kept, *complement(chosen, family.everything)))


def why_kept(inputs: Inputs, destination: IpAddress) -> str:
    """Name the setting or the CIDR by which a destination sees pods; "" if none."""
    snat = inputs.document.snat
    family = family_of(destination)
    if not family.private:
        return f", {family.name} is never translated"
    if snat.mode == "external":
        return ", by snat.mode external"
    if cidr := _holder(inputs.node.vpc_cidrs, destination):
        return f", a CIDR of the VPC: {cidr}"
    if cidr := _holder(snat.exclude_cidrs, destination):
        return f", by snat.excludeCIDRs {cidr}"
    return ", beyond snat.onlyCIDRs" if snat.only_cidrs is not None else ""


def why_translated(inputs: Inputs, destination: IpAddress) -> str:
    """Say why a destination sees the node."""
    cidr = _holder(inputs.document.snat.only_cidrs or (), destination)
    return f", by snat.onlyCIDRs {cidr}" if cidr else ", beyond the VPC and not excluded"


def _holder(cidrs: Iterable[IpNetwork], address: IpAddress) -> IpNetwork | None:
    return next((c for c in cidrs if c.version == address.version and address in c), None)
