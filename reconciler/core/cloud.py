"""One look at EC2, and the tags that say whose an ENI is."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from reconciler.core.facts import Eni
from reconciler.core.subnet import Subnet

INSTANCE_TAG = "node.k8s.amazonaws.com/instance_id"
"""Marks an ENI as ours. The stock plugin's tag, so that its tools and policies still work."""

UNMANAGED_TAG = "node.k8s.amazonaws.com/no_manage"
"""With value "true": foreign, whatever else it carries (stock plugin's tag)."""

CREATED_TAG = "node.k8s.amazonaws.com/createdAt"
"""RFC 3339; lets a collector of leaked ENIs tell old from new (stock plugin's tag)."""

CLUSTER_TAG = "cluster.k8s.amazonaws.com/name"
"""Which cluster's nodes may collect it once it is leaked (stock plugin's tag)."""

NODE_TAG = "node-network/node"
"""Name of the node that created it."""

CREATION_TAG = "node-network/creation"
"""The ClientToken of its creation, so that a record and its ENI find each other."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the instance type allows.

    Attributes:
        enis: interfaces, the primary included.
        addresses_per_eni: IPv4 addresses of one ENI, its primary included; a prefix counts as
            one.
    """

    enis: int
    addresses_per_eni: int

    @property
    def slots(self) -> int:
        """What an ENI can hold beside its primary address."""
        return self.addresses_per_eni - 1


@dataclass(frozen=True, slots=True)
class Cloud:
    """One look at EC2.

    Attributes:
        enis: attached to this instance or ours; device order, unattached last.
        limits: None if EC2 does not know the instance type.
        subnets: by id: those of the ENIs, and those that the document names.
        behind: EC2 does not list yet, or any more, what it answered moments ago.
    """

    enis: tuple[Eni, ...]
    limits: Limits | None
    subnets: Mapping[str, Subnet]
    behind: bool = False


def retain(before: Cloud, now: Cloud, macs: Container[str]) -> Cloud:
    """Keep ENIs that served pods and do not by this look, while their links are on the node.

    A shrinking observation is unknown, not gone: EC2 is eventually consistent, and a short answer,
    or one from before an attachment, would take down the routes of running pods. The link is the
    better witness. A kept ENI carries the pods it has; its addresses are given to no further ones.

    Args:
        before: the previous look.
        now: this one.
        macs: of the links that are on the node.
    """
    serving = {e.eni_id for e in now.enis if e.serves_pods}
    kept = {
        e.eni_id: replace(e, secondaries=(), prefixes=())
        for e in before.enis
        if e.serves_pods and e.eni_id not in serving and e.mac in macs
    }
    return replace(now, enis=(*(e for e in now.enis if e.eni_id not in kept), *kept.values()))
