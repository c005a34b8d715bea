"""Which EC2 actions a document needs, and how each is asked about without any effect. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.core.facts import Eni, Node
from reconciler.egress.destinations import ACTIONS, PREFIX_LISTS
from reconciler.ipam.cloud import INSTANCE_TAG
from schemas.document import NodeNetwork

LOOK = ("DescribeInstanceTypes", "DescribeNetworkInterfaces", "DescribeSubnets")
"""What every document needs to look."""

CHANGE = (
    *("AssignPrivateIpAddresses", "UnassignPrivateIpAddresses"),
    *("CreateNetworkInterface", "CreateTags", "AttachNetworkInterface"),
    *("ModifyNetworkInterfaceAttribute", "DetachNetworkInterface", "DeleteNetworkInterface"),
)
"""What every document needs to change the pool."""

IPV6, RESERVATIONS, TAKE_OVER = "AssignIpv6Addresses", "GetSubnetCidrReservations", "DeleteTags"
"""What documents with IPv6, with prefixes, and with a take-over need as well."""

NO_DRY_RUN = (IPV6, *CHANGE[:2])
"""Actions without that parameter (EC2 API reference)."""
NO_QUESTION = (
    "EC2 has no DryRun of it; a denial shows in 'status' once it is called (UnauthorizedOperation)"
)


def needed(document: NodeNetwork) -> frozenset[str]:
    """Return EC2's actions that nodes of a document need, those of overrides too."""
    trees = [document.model_dump(mode="json"), *(o.changes for o in document.overrides)]
    return frozenset((*LOOK, *CHANGE, *(a for tree in trees for a in _of_tree(tree))))


def _of_tree(tree: Mapping[str, Any]) -> Iterator[str]:
    for part in (tree, *(tree.get("podGroups") or ())):
        snat = part.get("snat") or {}
        lists = [snat.get(key) or () for key in ("excludeCIDRs", "onlyCIDRs")]
        lists += [rule["to"] for rule in snat.get("rules") or ()]
        for name in (name for listed in lists for name in listed):
            if name.startswith("pl-"):
                yield from PREFIX_LISTS
            yield from ACTIONS.get(name, ())
    if "ipv6" in (tree.get("families") or ()):
        yield IPV6
    if (tree.get("eni") or {}).get("allocate") == "prefixes":
        yield RESERVATIONS
    if tree.get("takeOver", "none") != "none":
        yield TAKE_OVER


@dataclass(frozen=True, slots=True)
class Question:
    """A call that shows whether its action is allowed.

    ``arguments``: as the SDK takes them. ``is_dry``: EC2 is asked not to do it (DryRun); what only
    reads is done once, for a page of few.
    """

    action: str
    arguments: Mapping[str, Any]
    is_dry: bool = True


@dataclass(frozen=True, slots=True)
class Unasked:
    """An action that cannot be asked about now, and why."""

    action: str
    why: str


FEW = 5
"""Items of a page; EC2 takes no smaller number."""


def questions(
    document: NodeNetwork, node: Node, enis: tuple[Eni, ...]
) -> Iterator[Question | Unasked]:
    """Yield what is to be asked of EC2, for each action that a document needs.

    ``document``: the effective one. ``enis``: of the last look.
    """
    wanted = needed(document)
    primary = next((e for e in enis if e.is_primary), None)
    yield Question("DescribeInstanceTypes", {"InstanceTypes": [node.instance_type]}, is_dry=False)
    here = [{"Name": "attachment.instance-id", "Values": [node.instance_id]}]
    arguments = {"Filters": here, "MaxResults": FEW}
    yield Question("DescribeNetworkInterfaces", arguments, is_dry=False)
    for action in sorted(wanted - {*LOOK, *CHANGE, IPV6, TAKE_OVER}):
        yield _of_read(action, primary)
    yield Question("DescribeSubnets", {"MaxResults": FEW}, is_dry=False)
    if primary is None:
        why = "EC2 has not shown the primary ENI"
        changes = sorted(wanted.intersection((*CHANGE, IPV6)))
        yield from (Unasked(action, why) for action in changes)
        return
    yield from (Unasked(action, NO_QUESTION) for action in NO_DRY_RUN if action in wanted)
    yield from _of_changes(document, node, primary, enis)
    if TAKE_OVER in wanted:
        yield Unasked(TAKE_OVER, "it is allowed for ENIs of the stock plugin's alone")


def _of_read(action: str, primary: Eni | None) -> Question | Unasked:
    if action == RESERVATIONS and primary is not None:
        return Question(action, {"SubnetId": primary.subnet_id}, is_dry=False)
    if action in (RESERVATIONS, "GetManagedPrefixListEntries"):
        return Unasked(action, "it names an object that is not known yet")
    return Question(action, {"MaxResults": FEW}, is_dry=False)


def _of_changes(
    document: NodeNetwork, node: Node, primary: Eni, enis: tuple[Eni, ...]
) -> Iterator[Question | Unasked]:
    """Ask of the primary ENI, and of one with our tag: others may not be changed by the policy."""
    tag = {"Key": INSTANCE_TAG, "Value": node.instance_id}
    groups = list(document.eni.security_groups or primary.security_groups)
    create = {
        "SubnetId": (document.eni.subnets or (primary.subnet_id,))[0],
        "Groups": groups,
        "TagSpecifications": [{"ResourceType": "network-interface", "Tags": [tag]}],
    }
    yield Question("CreateNetworkInterface", create)  # EC2 asks for CreateTags with it
    own = next((e for e in enis if e.owned and not e.is_primary and e.attachment_id), None)
    tagged = (
        *("AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"),
        *("DetachNetworkInterface", "DeleteNetworkInterface"),
    )
    if own is None:
        why = "it is allowed for ENIs with our tag alone, and this node has none yet"
        yield from (Unasked(action, why) for action in tagged)
        return
    named = {"NetworkInterfaceId": own.eni_id}
    instance = {"InstanceId": node.instance_id, "DeviceIndex": own.device_index or 1}
    yield Question(tagged[0], named | instance)
    yield Question(tagged[1], named | {"Groups": list(own.security_groups)})
    yield Question(tagged[2], {"AttachmentId": own.attachment_id})
    yield Question(tagged[3], named)
