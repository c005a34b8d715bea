"""Changes of an instance's ENIs, and what EC2 has answered to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any, Protocol

from reconciler.core.datapath import IpNetwork
from reconciler.errors import ApplyError
from reconciler.ipam import budget
from reconciler.ipam import ec2_action as ec2
from reconciler.ipam.cloud import CREATED_TAG, CREATION_TAG, INSTANCE_TAG, Cloud, OtherCard
from reconciler.ipam.ec2_action import AddEni, Creation, DelegatePrefix, Ec2Action
from reconciler.ipam.sources import TRUST_S, Answer, is_behind, overlay
from reconciler.targets.ec2 import decode
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import Calls, reading
from reconciler.targets.ec2.subnets import Subnets
from reconciler.targets.values import MalformedError, Object, inner

NO_PREFIXES = "InsufficientCidrBlocks"
"""EC2's code where a subnet has room but no whole block. Where it has no room either, the answer
is a bare InvalidParameterValue that says so in words (cilium/cilium#31016)."""

Assignment = ec2.AssignAddresses | ec2.AssignPrefixes | DelegatePrefix

ASSIGNMENTS: Mapping[type[Assignment], tuple[str, str, str]] = {
    ec2.AssignAddresses: (
        "assign_private_ip_addresses",
        "PrivateIpAddresses",
        "SecondaryPrivateIpAddressCount",
    ),
    ec2.AssignPrefixes: ("assign_private_ip_addresses", "Ipv4Prefixes", "Ipv4PrefixCount"),
    DelegatePrefix: ("assign_ipv6_addresses", "Ipv6Prefixes", "Ipv6PrefixCount"),
}
"""The method of each, its argument with what is named, and the one with how many EC2 chooses."""


class Journal(Protocol):
    """Where a creation is written down before EC2 is asked, and taken out if EC2 refused."""

    def record(self, creation: Creation) -> None:
        """Write it down, durably. An OSError says that it cannot be: then EC2 is not asked."""
        ...

    def forget(self, creation: Creation) -> None:
        """Take it out: it has certainly not happened."""
        ...


class Ec2Changes:
    """Makes changes of one instance's ENIs, one call after another; nothing is repeated."""

    def __init__(
        self, instance_id: str, calls: Calls, journal: Journal, clock: Callable[[], float]
    ) -> None:
        self._instance_id = instance_id
        self._calls = calls
        self._journal = journal
        self._clock = clock
        self._subnets = Subnets(calls, clock)
        self._shown = Cloud((), None, {})
        self._answers: list[Answer] = []

    def told(self) -> Cloud:
        """Return the last observation with what EC2 has answered since; without a call."""
        oldest = self._clock() - TRUST_S
        self._answers = [a for a in self._answers if a.at >= oldest]
        shown = self._shown
        names = {u.name for u in shown.unread}
        told = overlay(shown.enis, [a for a in self._answers if a.eni_id not in names])
        return replace(shown, enis=told, behind=is_behind(shown.enis, told))

    def apply(self, actions: Sequence[Ec2Action]) -> tuple[ApplyError, ...]:
        """Carry out actions in order; one that fails does not stop the others."""
        failures = []
        for action in actions:
            try:
                self._apply_one(action)
            except Ec2CallError as error:
                failures.append(self._translate(action, error))
            except OSError as error:
                failures.append(ApplyError.from_errno(str(action), error))
        return tuple(failures)

    def _apply_one(self, action: Ec2Action) -> None:
        match action:
            case AddEni(instance_id, creation):
                eni_id = self._create(creation)
                self._attach(eni_id, instance_id, creation.device_index)
            case ec2.AttachEni(eni_id, instance_id, device_index):
                self._attach(eni_id, instance_id, device_index)
            case ec2.TieToInstance(eni_id, attachment_id):
                self._tie(eni_id, attachment_id)
            case ec2.AdoptEni(eni_id, tags, obsolete):
                self._calls("create_tags", Resources=[eni_id], Tags=_tags(tags))
                self._learn(eni_id, changed={"owned": True})
                keys = [{"Key": key} for key in obsolete]
                self._calls("delete_tags", Resources=[eni_id], Tags=keys)
                self._learn(eni_id, changed={"stock": False, "stock_tags": ()})
            case ec2.SetSecurityGroups() | ec2.SetIdleTimeouts():
                self._follow(action)
            case ec2.AssignAddresses() | ec2.AssignPrefixes() | DelegatePrefix():
                self._learn(action.eni_id, added=self._assign(action))
            case ec2.ReleaseAddresses() | ec2.ReleasePrefixes():
                self._release(action)
            case ec2.DetachEni(eni_id, attachment_id):
                self._calls("detach_network_interface", AttachmentId=attachment_id)
                self._learn(eni_id, detached=True)
            case ec2.DeleteEni(eni_id):
                self._change("delete_network_interface", eni_id)
                self._learn(eni_id, deleted=True)

    def _change(self, method: str, eni_id: str, **arguments: Any) -> Object:
        return self._calls(method, NetworkInterfaceId=eni_id, **arguments)

    def _create(self, creation: Creation) -> str:
        created = datetime.fromtimestamp(int(creation.at), UTC).isoformat()
        tags = _tags([*creation.tags, (CREATED_TAG, created)])
        counts = {
            "Ipv4PrefixCount": creation.prefixes,
            "SecondaryPrivateIpAddressCount": creation.addresses,
            "Ipv6PrefixCount": creation.ipv6_prefixes,
        }
        self._journal.record(creation)
        try:
            answer = self._calls(
                "create_network_interface",
                SubnetId=creation.subnet_id,
                Groups=list(creation.security_groups),
                Description=f"node-network {self._instance_id}",
                ClientToken=creation.token,
                TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags}],
                **{name: count for name, count in counts.items() if count},
            )
        except Ec2CallError as error:
            if not _may_have_happened(error):
                self._journal.forget(creation)
            raise
        with reading("create_network_interface"):
            body = inner(answer, "NetworkInterface")
            listed = decode.decode_interface(body, self._instance_id)
            if isinstance(listed, OtherCard):
                raise MalformedError("NetworkInterface", None, "attached to nothing")
        # The subnet's CIDR is not in the answer; the look that chose the subnet has it.
        known = self._shown.subnets.get(creation.subnet_id)
        eni = replace(listed.eni, subnet_cidr=known.cidr) if known else listed.eni
        tagged = {INSTANCE_TAG: self._instance_id, CREATION_TAG: creation.token}
        created_eni = replace(
            eni,
            device_index=None,
            status="available",
            owned=tagged.items() <= dict(creation.tags).items(),
            creation=creation.token,
            created_at=float(int(creation.at)),
        )
        self._learn(eni.eni_id, created=created_eni)
        return eni.eni_id

    def _attach(self, eni_id: str, instance_id: str, device_index: int) -> None:
        method = "attach_network_interface"
        answer = self._change(method, eni_id, InstanceId=instance_id, DeviceIndex=device_index)
        with reading(method):
            attachment_id = decode.ID.of(answer, "AttachmentId")
        self._learn(eni_id, attached=(device_index, attachment_id))
        self._tie(eni_id, attachment_id)

    def _tie(self, eni_id: str, attachment_id: str) -> None:
        tied = {"AttachmentId": attachment_id, "DeleteOnTermination": True}
        self._change("modify_network_interface_attribute", eni_id, Attachment=tied)
        self._learn(eni_id, changed={"delete_on_termination": True})

    def _follow(self, action: ec2.SetSecurityGroups | ec2.SetIdleTimeouts) -> None:
        method, eni_id = "modify_network_interface_attribute", action.eni_id
        if isinstance(action, ec2.SetSecurityGroups):
            self._change(method, eni_id, Groups=list(action.security_groups))
            self._learn(eni_id, changed={"security_groups": action.security_groups})
        else:
            self._change(method, eni_id, ConnectionTrackingSpecification=action.specification)
            self._learn(eni_id, changed={"idle_timeouts": action.timeouts})

    def _assign(self, action: Assignment) -> frozenset[IpNetwork]:
        method, names, number = ASSIGNMENTS[type(action)]
        units: tuple[object, ...]
        if isinstance(action, DelegatePrefix):
            units, count = (action.prefix,) if action.prefix else (), 1
        else:
            units, count = action.units, action.count
        wanted: dict[str, Any] = {names: list(map(str, units))} if units else {number: count}
        answer = self._change(method, action.eni_id, **wanted)
        with reading(method):
            return decode.decode_assigned(answer)

    def _release(self, action: ec2.ReleaseAddresses | ec2.ReleasePrefixes) -> None:
        is_prefix = isinstance(action, ec2.ReleasePrefixes)
        name = "Ipv4Prefixes" if is_prefix else "PrivateIpAddresses"
        eni_id, texts = action.eni_id, [str(unit) for unit in action.units]
        gone = frozenset(map(ip_network, texts))
        try:
            self._change("unassign_private_ip_addresses", eni_id, **{name: texts})
        except Ec2CallError as error:
            # An earlier answer, or a late look, would show them as ours, and a pod get one.
            if _may_have_happened(error):
                self._learn(eni_id, removed=gone)
            raise
        self._learn(eni_id, removed=gone)

    def _learn(self, eni_id: str, **effect: Any) -> None:  # fields of ``Answer``
        self._answers.append(Answer(self._clock(), eni_id, **effect))

    def _translate(self, action: Ec2Action, error: Ec2CallError) -> ApplyError:
        code, call = error.code, error.operation_name
        subnet_id = action.creation.subnet_id if isinstance(action, AddEni) else ""
        subnet_id = getattr(action, "subnet_id", subnet_id)
        if code == "InvalidParameterValue" and "sufficient free Ipv4" in error.message:
            code = NO_PREFIXES
        exhausted = budget.classify(code) is budget.Failure.EXHAUSTED
        kind = "prefixes" if code == NO_PREFIXES else "addresses"
        scope = f"{kind}:{subnet_id}" if exhausted and subnet_id else call
        if scope == call or not self._subnets.is_news_of_room(kind, subnet_id):
            self._calls.fail(scope, code, error.message)
        # An action may make several calls: the one that failed is named.
        why = f"{call}: {error.message}{budget.cure(call, code)}"
        retryable = budget.classify(code) is not budget.Failure.DENIED
        failure = ApplyError(str(action), code, why, retryable=retryable)
        failure.__cause__ = error
        return failure


def _tags(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in pairs]


def _may_have_happened(error: Ec2CallError) -> bool:
    """Whether a call that failed may have had its effect: what was not answered is unknown."""
    return not error.refused or budget.classify(error.code) is budget.Failure.LOST
