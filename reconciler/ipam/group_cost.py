"""What pod groups cost: how many of an instance's ENIs they take, and whether all can have one."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.ipam.cloud import PREFIX_SIZE, Limits
from schemas.document import NodeNetwork
from schemas.group import PodGroup


@dataclass(frozen=True, slots=True)
class Cost:
    """What the groups of a document take of one instance type.

    Attributes:
        lines: in words, with the arithmetic.
        fault: why what is held before pods ask can never be; "" if it can.
        warning: why not all groups can have pods on one node; "" if they can.
    """

    lines: tuple[str, ...] = ()
    fault: str = ""
    warning: str = ""


def cost(document: NodeNetwork, instance_type: str, limits: Limits) -> Cost:
    """Say what the groups of a document cost on an instance type."""
    groups = document.pod_groups
    if not groups:
        return Cost()
    most = document.eni.max
    enis = limits.enis if most is None else min(limits.enis, most)
    per_eni = limits.slots * (PREFIX_SIZE if document.eni.allocate == "prefixes" else 1)
    ahead = {g.name: -(-_held(g) // max(per_eni, 1)) for g in groups}
    left = enis - 1 - sum(ahead.values())
    lines = [f"{instance_type}: {enis} ENIs, of {per_eni} pod addresses each: 1 is the primary"]
    for group in groups:
        if count := ahead[group.name]:
            what = f"{count} for {_held(group)} addresses that it holds before a pod asks"
        else:
            what = "1 once a pod asks"
        lines.append(f"group {group.name}: {what}")
    if left >= 0:
        lines.append(f"left for all else: {enis} - 1 - {sum(ahead.values())} = {left}")
    terms = " + ".join(str(n) for n in ahead.values() if n)
    fault = warning = ""
    if left < 0:
        fault = (
            f"{instance_type} has {enis} ENIs, and groups hold addresses on {terms} besides the "
            "primary before a pod asks; lower their warmPool, or use a larger instance type"
        )
    elif len(groups) > enis - 1:
        warning = (
            f"{instance_type} has {enis} ENIs, the primary among them, so pods of at most "
            f"{enis - 1} of {len(groups)} groups run on one node at a time; those of another wait"
        )
    return Cost(tuple(lines), fault, warning)


def _held(group: PodGroup) -> int:
    return max(group.warm_pool.addresses.warm, group.warm_pool.addresses.minimum)
