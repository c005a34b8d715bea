"""How many pods a node can serve, with the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.datapath import FAMILIES
from reconciler.ipam.cloud import Limits
from reconciler.ipam.pool import PREFIX_SIZE
from schemas.document import NodeNetwork

HOST_NETWORK_PODS = 2
"""Pods without an address of their own that every node runs (kube-proxy and this one); kubelet's
figures for EC2 count them (amazon-eks-ami ``eni-max-pods.txt``: ENIs x (addresses - 1) + 2)."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a node can serve.

    Attributes:
        pods: those on the host's network included.
        text: how it comes about.
    """

    pods: int
    text: str


def capacity(document: NodeNetwork, limits: Limits, *, foreign: int = 0) -> Capacity:
    """Return how many pods a node of these limits can serve.

    Args:
        document: for this node: overrides are resolved.
        limits: the instance type's.
        foreign: ENIs on the instance that are not ours.
    """
    if not any(FAMILIES[name].counted for name in document.families):
        more = f"{HOST_NETWORK_PODS} on the host's network"
        return Capacity(2**48 + HOST_NETWORK_PODS, f"one IPv6 prefix x 2^48 + {more}")
    addresses, text = most_addresses(document, limits, foreign=foreign)
    more = f"{HOST_NETWORK_PODS} on the host's network"
    return Capacity(addresses + HOST_NETWORK_PODS, f"{text} + {more}")


def most_addresses(document: NodeNetwork, limits: Limits, *, foreign: int = 0) -> tuple[int, str]:
    """Return how many addresses for pods a node can hold, and how that comes about.

    Args:
        document: for this node: overrides are resolved.
        limits: the instance type's.
        foreign: ENIs on the instance that are not ours.
    """
    most = document.eni.max
    enis = limits.enis if most is None else min(limits.enis, most)
    usable = max(enis - foreign - (not document.eni.use_primary), 0)
    prefixes = document.eni.allocate == "prefixes"
    less = f" - {foreign} foreign" if foreign else ""
    less += "" if document.eni.use_primary else " - the primary"
    size = f" x {PREFIX_SIZE}" if prefixes else ""
    count = usable * limits.slots * (PREFIX_SIZE if prefixes else 1)
    held = f"({enis} ENIs{less})" if less else f"{enis} ENIs"
    return count, f"{held} x {limits.slots}{size}"


def overcommitted(
    document: NodeNetwork, instance_type: str, limits: Limits, *, foreign: int = 0
) -> str:
    """Say that ``maxPods`` is more than the node can serve; "" if it is not."""
    found = capacity(document, limits, foreign=foreign)
    if document.max_pods is None or document.max_pods <= found.pods:
        return ""
    return (
        f"{document.max_pods} pods are more than {instance_type} can serve, {found.pods}: "
        f"{found.text}; lower maxPods and kubelet's --max-pods"
    )
