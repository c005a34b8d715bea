"""Source NAT: which destinations see a pod's own address.

The whole policy comes down to one set of ranges for each family. Its contents are data, so that
no mode, exclusion or VPC CIDR ever changes a rule: the ruleset asks only "is it in the set?".
"""

from __future__ import annotations

from reconciler.core.datapath import Family
from reconciler.core.inputs import Inputs
from reconciler.core.ranges import Range, coalesce, complement, unite


def untranslated(inputs: Inputs, family: Family) -> tuple[Range, ...]:
    """Return the destinations that see pods' own addresses, coalesced.

    IPv6 is never translated: a pod's address is as good as the node's everywhere.
    """
    snat = inputs.document.snat
    if snat.mode == "external" or family.version == 6:
        return coalesce([family.everything])
    cidrs = (*inputs.node.vpc_cidrs, *snat.exclude_cidrs)
    kept = coalesce(c for c in cidrs if c.version == family.version)
    if snat.only_cidrs is None:
        return kept
    chosen = coalesce(c for c in snat.only_cidrs if c.version == family.version)
    return unite((*kept, *complement(chosen, family.everything)))
