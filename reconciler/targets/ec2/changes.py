"""Changes of an instance's ENIs, and what EC2 has answered to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any, Protocol

from reconciler.errors import ApplyError
from reconciler.ipam import budget
from reconciler.ipam.cloud import CREATED_TAG, CREATION_TAG, INSTANCE_TAG, Cloud
from reconciler.ipam.ec2_action import (
    AddEni,
    AdoptEni,
    AssignAddresses,
    AssignPrefixes,
    AttachEni,
    Creation,
    DelegatePrefix,
    DeleteEni,
    DetachEni,
    Ec2Action,
    ReleaseAddresses,
    ReleasePrefixes,
    SetSecurityGroups,
    TieToInstance,
)
from reconciler.ipam.sources import TRUST_S, Answer, is_behind, overlay
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import Calls, reading
from reconciler.targets.ec2.decode import decode_assigned, decode_delegated, decode_interface
from reconciler.targets.ec2.fields import ID
from reconciler.targets.ec2.subnets import Subnets
from reconciler.targets.values import MalformedError, inner

NO_PREFIXES = "InsufficientCidrBlocks"
"""EC2's code where a subnet has room but no whole block. Where it has no room either, the answer
is a bare InvalidParameterValue that says so in words (cilium/cilium#31016)."""


class Journal(Protocol):
    """Where a creation is written down before EC2 is asked, and taken out if EC2 refused."""

    def record(self, creation: Creation) -> None:
        """Write it down, durably.

        Raises:
            OSError: it cannot be written; then EC2 is not asked.
        """
        ...

    def forget(self, creation: Creation) -> None:
        """Take it out: it has certainly not happened."""
        ...


class Ec2Changes:
    """Makes changes, one call after another; nothing is repeated.

    Args:
        instance_id: the instance.
        calls: makes calls.
        journal: where creations are written down.
        clock: monotonic seconds.
    """

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
            case AddEni():
                eni_id = self._create(action.creation)
                index = action.creation.device_index
                self._tie(eni_id, self._attach(eni_id, action.instance_id, index))
            case AttachEni():
                attachment = self._attach(action.eni_id, action.instance_id, action.device_index)
                self._tie(action.eni_id, attachment)
            case TieToInstance():
                self._tie(action.eni_id, action.attachment_id)
            case AdoptEni():
                self._adopt(action)
            case SetSecurityGroups():
                self._calls(
                    "modify_network_interface_attribute",
                    NetworkInterfaceId=action.eni_id,
                    Groups=list(action.security_groups),
                )
            case AssignAddresses() | AssignPrefixes() | DelegatePrefix():
                self._assign(action)
            case ReleaseAddresses():
                self._release(action.eni_id, "PrivateIpAddresses", action.units)
            case ReleasePrefixes():
                self._release(action.eni_id, "Ipv4Prefixes", action.units)
            case DetachEni() | DeleteEni():
                self._remove(action)

    def _create(self, creation: Creation) -> str:
        created = datetime.fromtimestamp(int(creation.at), UTC).isoformat()
        tags = [*creation.tags, (CREATED_TAG, created)]
        counts = {
            "Ipv4PrefixCount": creation.prefixes,
            "SecondaryPrivateIpAddressCount": creation.addresses,
            "Ipv6PrefixCount": creation.ipv6_prefixes,
        }
        wanted = {name: count for name, count in counts.items() if count}
        self._journal.record(creation)
        try:
            answer = self._calls(
                "create_network_interface",
                SubnetId=creation.subnet_id,
                Groups=list(creation.security_groups),
                Description=f"node-network {self._instance_id}",
                ClientToken=creation.token,
                TagSpecifications=[
                    {
                        "ResourceType": "network-interface",
                        "Tags": [{"Key": key, "Value": value} for key, value in tags],
                    }
                ],
                **wanted,
            )
        except Ec2CallError as error:
            if not _may_have_happened(error):
                self._journal.forget(creation)
            raise
        with reading("create_network_interface"):
            listed = decode_interface(inner(answer, "NetworkInterface"), self._instance_id)
            if listed is None:
                raise MalformedError("NetworkInterface", None, "attached to nothing")
        # The subnet's CIDR is not in the answer; the look that chose the subnet has it.
        known = self._shown.subnets.get(creation.subnet_id)
        eni = replace(listed.eni, subnet_cidr=known.cidr) if known else listed.eni
        tagged = {INSTANCE_TAG: self._instance_id, CREATION_TAG: creation.token}
        owned = tagged.items() <= dict(creation.tags).items()
        self._learn(
            eni.eni_id,
            created=replace(
                eni,
                device_index=None,
                status="available",
                owned=owned,
                creation=creation.token,
                created_at=float(int(creation.at)),
            ),
        )
        return eni.eni_id

    def _attach(self, eni_id: str, instance_id: str, device_index: int) -> str:
        answer = self._calls(
            "attach_network_interface",
            NetworkInterfaceId=eni_id,
            InstanceId=instance_id,
            DeviceIndex=device_index,
        )
        with reading("attach_network_interface"):
            attachment = ID.of(answer, "AttachmentId")
        self._learn(eni_id, attached=(device_index, attachment))
        return attachment

    def _tie(self, eni_id: str, attachment_id: str) -> None:
        self._calls(
            "modify_network_interface_attribute",
            NetworkInterfaceId=eni_id,
            Attachment={"AttachmentId": attachment_id, "DeleteOnTermination": True},
        )
        self._learn(eni_id, tied=True)

    def _adopt(self, action: AdoptEni) -> None:
        tags = [{"Key": key, "Value": value} for key, value in action.tags]
        self._calls("create_tags", Resources=[action.eni_id], Tags=tags)
        self._learn(action.eni_id, adopted=True)
        keys = [{"Key": key} for key in action.obsolete]
        self._calls("delete_tags", Resources=[action.eni_id], Tags=keys)
        self._learn(action.eni_id, disowned=True)

    def _assign(self, action: AssignAddresses | AssignPrefixes | DelegatePrefix) -> None:
        method, decode = "assign_private_ip_addresses", decode_assigned
        wanted: dict[str, Any]
        match action:
            case AssignAddresses(units=()):
                wanted = {"SecondaryPrivateIpAddressCount": action.count}
            case AssignAddresses():
                wanted = {"PrivateIpAddresses": [str(a) for a in action.units]}
            case AssignPrefixes(units=()):
                wanted = {"Ipv4PrefixCount": action.count}
            case AssignPrefixes():
                wanted = {"Ipv4Prefixes": [str(p) for p in action.units]}
            case DelegatePrefix(prefix=named):
                method, decode = "assign_ipv6_addresses", decode_delegated
                wanted = {"Ipv6Prefixes": [str(named)]} if named else {"Ipv6PrefixCount": 1}
        answer = self._calls(method, NetworkInterfaceId=action.eni_id, **wanted)
        with reading(method):
            added = decode(answer)
        self._learn(action.eni_id, added=added)

    def _release(self, eni_id: str, name: str, units: Sequence[object]) -> None:
        texts = [str(unit) for unit in units]
        gone = frozenset(map(ip_network, texts))
        try:
            method = "unassign_private_ip_addresses"
            self._calls(method, NetworkInterfaceId=eni_id, **{name: texts})
        except Ec2CallError as error:
            # An earlier answer, or a late look, would show them as ours, and a pod get one.
            if _may_have_happened(error):
                self._learn(eni_id, removed=gone)
            raise
        self._learn(eni_id, removed=gone)

    def _remove(self, action: DetachEni | DeleteEni) -> None:
        match action:
            case DetachEni():
                self._calls("detach_network_interface", AttachmentId=action.attachment_id)
                self._learn(action.eni_id, detached=True)
            case DeleteEni():
                self._calls("delete_network_interface", NetworkInterfaceId=action.eni_id)
                self._learn(action.eni_id, deleted=True)

    def _learn(self, eni_id: str, **effect: Any) -> None:
        self._answers.append(Answer(self._clock(), eni_id, **effect))

    def _translate(self, action: Ec2Action, error: Ec2CallError) -> ApplyError:
        code, call = error.code, error.operation_name
        subnet_id = _subnet(action)
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


def _may_have_happened(error: Ec2CallError) -> bool:
    """Whether a call that failed may have had its effect: what was not answered is unknown."""
    return not error.refused or budget.classify(error.code) is budget.Failure.LOST


def _subnet(action: Ec2Action) -> str:
    match action:
        case AddEni():
            return action.creation.subnet_id
        case AssignAddresses() | AssignPrefixes() | DelegatePrefix():
            return action.subnet_id
        case _:
            return ""
