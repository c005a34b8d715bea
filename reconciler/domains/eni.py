"""ENIs and their addresses in EC2, as a domain: what the pool's plan is asked for."""

from __future__ import annotations

from reconciler.domains.inputs import Inputs
from reconciler.ipam.cloud import CLUSTER_TAG, INSTANCE_TAG, NODE_TAG, Limits
from reconciler.ipam.pool_plan import adopted as adopted
from reconciler.ipam.pool_plan import given_back as given_back
from reconciler.ipam.pool_plan import plan as plan
from reconciler.ipam.pool_plan import quarantine as quarantine
from reconciler.ipam.pool_status import Pool


def desire(inputs: Inputs) -> Pool:
    """Gather what the document wants and what is used."""
    document, ec2 = inputs.document, inputs.ec2
    tags = dict(document.eni.tags) | {INSTANCE_TAG: inputs.node.instance_id}
    if document.cluster:
        tags[CLUSTER_TAG] = document.cluster
    if inputs.node.name:
        tags[NODE_TAG] = inputs.node.name
    limits = dict(document.instance_types).get(inputs.node.instance_type)
    return Pool(
        node=inputs.node,
        document=document,
        strategy=document.warm_pool.strategy,
        demand=inputs.demand,
        max_pods=document.max_pods,
        used=ec2.used,
        quarantined=ec2.quarantined,
        max_enis=document.eni.max,
        limits=Limits(limits.enis, limits.addresses_per_eni) if limits else None,
        prefixes=document.eni.allocate == "prefixes",
        use_primary=document.eni.use_primary,
        subnets=document.eni.subnets,
        selector=document.eni.subnet_tags,
        security_groups=document.eni.security_groups,
        tags=tuple(sorted(tags.items())),
        attachments=inputs.attachments,
        creations=ec2.creations,
        disagreements=ec2.disagreements,
        backoffs=ec2.backoffs,
        nonce=ec2.nonce,
        now=inputs.now,
        clock=inputs.clock,
        take_over=inputs.predecessor.taking_over,
        families=document.families,
        maybe_released=ec2.maybe_released,
    )
