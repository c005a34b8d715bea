"""ENIs and their addresses in EC2, as a domain: what the pool's plan is asked for."""

from __future__ import annotations

from reconciler.domains.inputs import Inputs
from reconciler.ipam.cloud import CLUSTER_TAG, INSTANCE_TAG, NODE_TAG, Limits
from reconciler.ipam.pool_groups import plan as plan
from reconciler.ipam.pool_status import Pool


def desire(inputs: Inputs) -> Pool:
    """Gather what the document wants and what is used."""
    document = inputs.document
    tags = dict(document.eni.tags) | {INSTANCE_TAG: inputs.node.instance_id}
    if document.cluster:
        tags[CLUSTER_TAG] = document.cluster
    if inputs.node.name:
        tags[NODE_TAG] = inputs.node.name
    limits = dict(document.instance_types).get(inputs.node.instance_type)
    return Pool(
        node=inputs.node,
        document=document,
        demand=inputs.demand,
        tags=tuple(sorted(tags.items())),
        limits=Limits(limits.enis, limits.addresses_per_eni) if limits else None,
        attachments=inputs.attachments,
        ec2=inputs.ec2,
        now=inputs.now,
        clock=inputs.clock,
        take_over=inputs.host.predecessor.taking_over,
    )
