"""ENIs and their addresses in EC2: a pool by count.

The pool only grows here. What it holds beyond its target stays: to give an address back takes
proof that nobody uses it, which this planner does not collect yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from reconciler.core import pool
from reconciler.core.datapath import MAX_DEVICE_INDEX
from reconciler.core.facts import Eni, Inputs, Node
from reconciler.core.plan import Action, Key, Plan, Refusal, Verb

INSTANCE_TAG = "node.k8s.amazonaws.com/instance_id"
"""Marks an ENI as ours. The stock plugin's tag, so that its tools and policies still work."""

UNMANAGED_TAG = "node.k8s.amazonaws.com/no_manage"
"""With value "true": foreign, whatever else it carries (stock plugin's tag)."""

CREATED_TAG = "node.k8s.amazonaws.com/createdAt"
"""RFC 3339; lets a collector of leaked ENIs tell old from new (stock plugin's tag)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the instance type allows.

    Attributes:
        enis: interfaces, the primary included.
        addresses_per_eni: IPv4 addresses of one ENI, its primary included.
    """

    enis: int
    addresses_per_eni: int


@dataclass(frozen=True, slots=True)
class Cloud:
    """One look at EC2.

    Attributes:
        enis: attached to this instance or ours; device order, unattached last.
        free_addresses: what each subnet has left, by subnet id.
    """

    enis: tuple[Eni, ...]
    limits: Limits
    free_addresses: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool that is wanted.

    Attributes:
        total: pod addresses to hold.
        max_enis: the document's limit; None leaves the instance type's.
        tags: for ENIs we create, in key order.
    """

    node: Node
    total: int
    max_enis: int | None
    tags: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AddEni:
    """Create an ENI with its addresses, attach it, and tie its life to the instance's.

    Attributes:
        addresses: secondary addresses; the primary comes on top.
        client_token: makes the creation safe to repeat. It follows from what was observed, so a
            restarted planner that sees the same world asks with the same token.
    """

    instance_id: str
    device_index: int
    subnet_id: str
    security_groups: tuple[str, ...]
    addresses: int
    tags: tuple[tuple[str, str], ...]
    client_token: str
    reason: str
    verb: Verb = Verb.CREATE
    kind: str = "eni"
    calls: tuple[str, ...] = (
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
    )

    @property
    def key(self) -> Key:
        """The device index it will have."""
        return (self.device_index,)

    def __str__(self) -> str:
        return (
            f"aws ec2 create-network-interface --subnet-id {self.subnet_id} "
            f"--secondary-private-ip-address-count {self.addresses} "
            f"&& aws ec2 attach-network-interface --device-index {self.device_index}"
        )


@dataclass(frozen=True, slots=True)
class AttachEni:
    """Attach an ENI of ours that is not attached: a creation that was interrupted."""

    instance_id: str
    eni_id: str
    device_index: int
    reason: str
    verb: Verb = Verb.UPDATE
    kind: str = "eni"
    calls: tuple[str, ...] = ("AttachNetworkInterface", "ModifyNetworkInterfaceAttribute")

    @property
    def key(self) -> Key:
        """The ENI."""
        return (self.eni_id,)

    def __str__(self) -> str:
        return (
            f"aws ec2 attach-network-interface --network-interface-id {self.eni_id} "
            f"--device-index {self.device_index}"
        )


@dataclass(frozen=True, slots=True)
class TieToInstance:
    """Have EC2 delete an ENI of ours with the instance, so that a dead node leaks none."""

    eni_id: str
    attachment_id: str
    reason: str
    verb: Verb = Verb.UPDATE
    kind: str = "eni"
    calls: tuple[str, ...] = ("ModifyNetworkInterfaceAttribute",)

    @property
    def key(self) -> Key:
        """The ENI."""
        return (self.eni_id,)

    def __str__(self) -> str:
        return (
            f"aws ec2 modify-network-interface-attribute --network-interface-id {self.eni_id} "
            f"--attachment AttachmentId={self.attachment_id},DeleteOnTermination=true"
        )


@dataclass(frozen=True, slots=True)
class AssignAddresses:
    """Have EC2 choose more secondary addresses for an ENI."""

    eni_id: str
    count: int
    reason: str
    verb: Verb = Verb.UPDATE
    kind: str = "eni"
    calls: tuple[str, ...] = ("AssignPrivateIpAddresses",)

    @property
    def key(self) -> Key:
        """The ENI."""
        return (self.eni_id,)

    def __str__(self) -> str:
        return (
            f"aws ec2 assign-private-ip-addresses --network-interface-id {self.eni_id} "
            f"--secondary-private-ip-address-count {self.count}"
        )


EniAction = AddEni | AttachEni | TieToInstance | AssignAddresses


def desire(inputs: Inputs) -> Pool:
    """Compute the pool's target from the document and the demand."""
    warm_pool = inputs.document.warm_pool
    return Pool(
        node=inputs.node,
        total=pool.target(warm=warm_pool.warm, minimum=warm_pool.minimum, demand=inputs.demand),
        max_enis=inputs.document.eni.max,
        tags=tuple(sorted(dict(inputs.document.eni.tags).items())),
    )


def retain(before: Cloud, now: Cloud, macs: Container[str]) -> Cloud:
    """Keep ENIs that served pods and do not by this look, while their links are on the node.

    A shrinking observation is unknown, not gone: EC2 is eventually consistent, and a short answer,
    or one from before an attachment, would take down the routes of running pods. The link is the
    better witness. A kept ENI carries the pods it has; its addresses are given to no further ones.

    Args:
        before: the previous look.
        now: the present one.
        macs: of the links that the kernel shows.
    """
    serving = {e.eni_id for e in now.enis if e.serves_pods}
    kept = {
        e.eni_id: replace(e, secondaries=())
        for e in before.enis
        if e.serves_pods and e.eni_id not in serving and e.mac in macs
    }
    return replace(now, enis=(*(e for e in now.enis if e.eni_id not in kept), *kept.values()))


def plan(desired: Pool, observed: Cloud) -> Plan:
    """Finish what was begun, then grow."""
    ours = [e for e in observed.enis if e.owned]
    finish: list[Action] = []
    indices = _free_indices(observed.enis)
    room_for_enis = _eni_limit(desired, observed) - sum(
        1 for e in observed.enis if e.device_index is not None
    )
    for eni in ours:
        if eni.status == "available" and room_for_enis > 0:
            reason = "ours, but attached to nothing: its creation was interrupted"
            finish.append(AttachEni(desired.node.instance_id, eni.eni_id, indices.pop(0), reason))
            room_for_enis -= 1
        elif not eni.delete_on_termination and eni.attachment_id and eni.device_index:
            reason = "would outlive the instance"
            finish.append(TieToInstance(eni.eni_id, eni.attachment_id, reason))
    return Plan(tuple(finish)) + _grow(desired, observed, indices, room_for_enis)


def _grow(desired: Pool, observed: Cloud, indices: list[int], new_enis: int) -> Plan:
    usable = [e for e in observed.enis if e.owned and e.status != "detaching"]
    held = sum(len(e.secondaries) for e in usable)
    if held >= desired.total:
        return Plan()
    template = next((e for e in usable if e.device_index == 0), None)
    if template is None:
        return Plan(refusals=(_no_primary(desired.node),))
    per_eni = observed.limits.addresses_per_eni - 1
    free = dict(observed.free_addresses)
    rooms = []
    for eni in usable:
        room = max(min(per_eni - len(eni.secondaries), free.get(eni.subnet_id, 0)), 0)
        free[eni.subnet_id] = free.get(eni.subnet_id, 0) - room
        rooms.append(room)
    growth = pool.grow(
        desired.total - held, rooms=rooms, new_enis=max(new_enis, 0), per_eni=per_eni
    )
    creations, denied = _fit(growth.create, max(free.get(template.subnet_id, 0), 0))
    why = f"pool holds {held} of {desired.total} addresses"
    actions: list[Action] = [
        AssignAddresses(usable[position].eni_id, count, why) for position, count in growth.assign
    ]
    for index, count in zip(indices, creations, strict=False):
        actions.append(_creation(desired, observed, template, index, count, why))
    refusals = []
    if denied:
        refusals.append(_subnet_exhausted(template.subnet_id, denied, desired, held))
    if growth.unmet:
        refusals.append(_limit_reached(growth.unmet, desired, observed, held))
    return Plan(tuple(actions), tuple(refusals))


def _fit(creations: tuple[int, ...], free: int) -> tuple[list[int], int]:
    """Cut new ENIs to what the subnet has left; each takes one address for itself."""
    fitting: list[int] = []
    denied = 0
    for count in creations:
        possible = max(min(count, free - 1), 0)
        denied += count - possible
        free -= possible + 1
        if possible:
            fitting.append(possible)
    return fitting, denied


def _creation(
    desired: Pool, observed: Cloud, template: Eni, index: int, count: int, why: str
) -> AddEni:
    node = desired.node
    seen = sorted(e.eni_id for e in observed.enis)
    token = hashlib.sha256(
        "/".join([node.instance_id, template.subnet_id, str(index), str(count), *seen]).encode()
    ).hexdigest()[:32]
    tags = dict(desired.tags) | {INSTANCE_TAG: node.instance_id}
    return AddEni(
        instance_id=node.instance_id,
        device_index=index,
        subnet_id=template.subnet_id,
        security_groups=template.security_groups,
        addresses=count,
        tags=tuple(sorted(tags.items())),
        client_token=token,
        reason=why,
    )


def _eni_limit(desired: Pool, observed: Cloud) -> int:
    limit = observed.limits.enis
    return limit if desired.max_enis is None else min(limit, desired.max_enis)


def _free_indices(enis: tuple[Eni, ...]) -> list[int]:
    used = {e.device_index for e in enis}
    return [i for i in range(1, MAX_DEVICE_INDEX + 1) if i not in used]


def _no_primary(node: Node) -> Refusal:
    return Refusal(
        subject=f"pool of {node.instance_id}",
        reason="PrimaryEniUnknown",
        message="EC2 shows no ENI at device index 0, whose subnet and security groups new ENIs "
        "take; check that DescribeNetworkInterfaces sees this instance",
    )


def _subnet_exhausted(subnet_id: str, denied: int, desired: Pool, held: int) -> Refusal:
    return Refusal(
        subject=f"subnet {subnet_id}",
        reason="SubnetExhausted",
        message=f"{denied} of {desired.total - held} missing addresses do not fit into what the "
        "subnet has left; free addresses there or use a larger subnet",
    )


def _limit_reached(unmet: int, desired: Pool, observed: Cloud, held: int) -> Refusal:
    limit = _eni_limit(desired, observed)
    source = "eni.max" if limit < observed.limits.enis else desired.node.instance_type
    capacity = limit * (observed.limits.addresses_per_eni - 1)
    return Refusal(
        subject=f"pool of {desired.node.instance_id}",
        reason="PoolLimitReached",
        message=f"{desired.total} addresses wanted, {held} held, {unmet} cannot be had: {source} "
        f"allows {limit} ENIs x {observed.limits.addresses_per_eni - 1} = {capacity}; lower "
        "warmPool, or use a larger instance type",
    )
