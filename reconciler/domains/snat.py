"""Source NAT: which destinations see a pod's own address.

The whole policy comes down to one set of ranges for each family. Its contents are data, so that
no mode, exclusion or VPC CIDR ever changes a rule: the ruleset asks only "is it in the set?".
"""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.core.datapath import Family, IpAddress
from reconciler.core.ranges import Range
from reconciler.domains.inputs import Inputs
from reconciler.egress import destinations
from schemas.snat import SnatPolicy


def untranslated(inputs: Inputs, family: Family, group: str = "") -> tuple[Range, ...]:
    """Return the destinations that see pods' own addresses, coalesced.

    A family without private addresses is never translated: a pod's is as good as the node's.

    ``group``: the pod group whose policy counts, here and below.
    """
    snat, egress = _policy(inputs, group), inputs.host.egress
    return destinations.untranslated(snat, egress, inputs.node.vpc_cidrs, family)


def reasons(inputs: Inputs, ranges: tuple[Range, ...], group: str = "") -> Mapping[Range, str]:
    """Name the sources by which ranges are untranslated; those that no source has are left out."""
    return destinations.reasons(_policy(inputs, group), inputs.host.egress, ranges)


def why_kept(inputs: Inputs, destination: IpAddress, group: str = "") -> str:
    """Name the setting, CIDR or source by which a destination sees pods; "" if none."""
    snat, egress = _policy(inputs, group), inputs.host.egress
    return destinations.why_kept(snat, egress, inputs.node.vpc_cidrs, destination)


def why_translated(inputs: Inputs, destination: IpAddress, group: str = "") -> str:
    """Say why a destination sees the node."""
    return destinations.why_translated(_policy(inputs, group), inputs.host.egress, destination)


def _policy(inputs: Inputs, group: str) -> SnatPolicy:
    document = inputs.document
    return dict(document.snat_policies).get(group, document.snat) if group else document.snat
