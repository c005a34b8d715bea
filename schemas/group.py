"""Pod groups: pods that have ENIs of their own, by what the runtime calls them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from schemas.pods import PodMatch
from schemas.pool import MAX_SECURITY_GROUPS, AddressTarget
from schemas.snat import SnatPolicy
from schemas.value import Form, Model, SecurityGroupId, SubnetId, TagSelector, check_unique
from schemas.vocabulary import AfterValidator, Field

MAX_GROUPS = 16
"""Groups in one document: more than most instance types have ENIs for."""

GroupName = Annotated[
    str,
    Form(
        "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        "1 to 63 lower-case letters, digits and hyphens, as a label",
    ),
]


class GroupPool(Model):
    """What the node holds for a group before its pods ask for it."""

    addresses: AddressTarget = Field(
        default=AddressTarget(warm=0),
        description="As warmPool.addresses, of this group alone. Anything held before a pod asks "
        "costs an ENI on each node.",
    )


class PodGroup(Model):
    """Pods with ENIs, security groups, a part of the warm pool and an SNAT policy of their own."""

    name: GroupName = Field(
        description="Name of the group; a tag on its ENIs has it, and another name means other "
        "ENIs. Unit: 1 to 63 lower-case letters, digits and hyphens."
    )
    match: PodMatch = Field(
        description="Which pods. The first group that matches a pod is its group; a pod of none, "
        "or whose name the runtime did not say, gets an address of the ENIs of no group."
    )
    subnets: Annotated[tuple[SubnetId, ...], AfterValidator(check_unique)] = Field(
        default=(),
        description="Subnets of its ENIs, most wanted first. Unit: ids. Default: as eni says.",
    )
    subnet_tags: TagSelector = Field(
        default=(),
        description="Instead of subnets: use those that have all of these tags. Default: no "
        "selection.",
    )
    security_groups: Annotated[
        tuple[SecurityGroupId, ...],
        Field(max_length=MAX_SECURITY_GROUPS),
        AfterValidator(check_unique),
    ] = Field(
        default=(),
        description="Security groups of its ENIs. Unit: ids, at most 16. Default: as eni says.",
    )
    warm_pool: GroupPool = Field(
        default=GroupPool(),
        description="Free addresses of the group. Default: none before its first pod, which waits "
        "for an ENI some seconds; that ENI then stays, with up to 4 free addresses.",
    )
    snat: SnatPolicy | None = Field(
        default=None,
        description="Which address others outside the VPC see of its pods, in place of snat, of "
        "which only ports still holds. Default: as snat says.",
    )

    def _faults(self) -> Iterator[str]:
        if self.subnets and self.subnet_tags:
            yield "subnetTags: subnets names the subnets already; remove subnets or subnetTags"


def group_of(pod: str, groups: Iterable[PodGroup]) -> str:
    """Return the name of a pod's group: the first that matches; "" is that of all others.

    ``pod``: ``namespace/name``; "" if the runtime did not say it.
    """
    if not pod:
        return ""
    namespace, _, name = pod.partition("/")
    return next((g.name for g in groups if g.match.matches(namespace, name)), "")


def of_group(what: str, group: str) -> str:
    """Say whose something is; ``group`` is "" if it is no group's."""
    return f"{what} of group {group}" if group else what


def find_doubles(groups: Iterable[PodGroup]) -> Iterator[str]:
    """Say which names stand twice."""
    seen = set[str]()
    for position, group in enumerate(groups):
        if group.name in seen:
            yield f"podGroups[{position}].name: {group.name} stands twice; rename one of them"
        seen.add(group.name)
