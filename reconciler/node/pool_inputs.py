"""The inputs of the pool's planner, completed from all that says an address is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from reconciler.core.attachment import MAX_POD_ADDRESSES
from reconciler.core.datapath import IpAddress
from reconciler.core.facts import Eni
from reconciler.domains.inputs import Inputs
from reconciler.ipam.records import Records

Routed = Mapping[str, tuple[IpAddress, ...]]
"""Addresses of pods by host end, as their routes say."""


def complete(inputs: Inputs, records: Records, routed: Routed, enis: Iterable[Eni]) -> Inputs:
    """Add to the inputs what only the pool's planner looks at.

    Args:
        inputs: the document, the node, its links; the time of now.
        records: as they are now.
        routed: as they were seen in this pass.
        enis: of EC2; none before it was observed.
    """
    enis = list(enis)
    used = {c.address for c in records.cooling}
    used |= {a for bound in records.attachments for a in bound.addresses}
    used |= records.withheld(inputs.now)
    used |= {a for held in routed.values() for a in held}
    elsewhere = inputs.host.predecessor.held
    # Those on ENIs that are not ours are neither held by us nor asked of us.
    ours = {a for e in enis if e.serves_pods for a in e.pod_addresses}
    # What the host takes for its own serves no pod, and is in use.
    occupied = {a for a in ours - used if any(a in n for n in inputs.host.occupied)}
    used |= occupied
    if any(len(held) > MAX_POD_ADDRESSES for held in routed.values()):
        # Routes are added without end, so any address may be in use: none is given back.
        used |= ours | {n.network_address for e in enis for n in e.ipv6_prefixes}
    demand, pending = records.demand, [q for q in records.quarantined if q.is_pending(inputs.now)]
    ec2 = replace(
        inputs.ec2,
        used=frozenset(used | elsewhere),
        quarantined=frozenset(q.network for q in records.quarantined),
        maybe_released=frozenset(q.network for q in pending),
        creations=records.creations,
    )
    assigned = demand.assigned + len(elsewhere & ours | occupied)
    return replace(
        inputs,
        attachments=records.attachments,
        demand=replace(demand, assigned=assigned),
        ec2=ec2,
    )
