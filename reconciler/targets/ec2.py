"""EC2: one instance's ENIs, looked at and changed.

Nothing is retried here: the loop looks again before it repeats anything, and only a look can tell
whether a call whose answer was lost has happened. Who makes the calls is ``ec2_caller``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Protocol

from reconciler.core import budget
from reconciler.core.answer import TRUST_S, Answer, is_behind, overlay
from reconciler.core.budget import Bucket
from reconciler.core.call import (
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
from reconciler.core.cloud import (
    CREATED_TAG,
    CREATION_TAG,
    INSTANCE_TAG,
    STOCK_INSTANCE_TAG,
    UNMANAGED_TAG,
    Cloud,
    Limits,
    is_stock_tag,
)
from reconciler.core.datapath import IpNetwork, host_network
from reconciler.core.facts import Eni
from reconciler.core.position import Pool
from reconciler.core.subnet import Subnet, free_blocks
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.ec2_caller import Caller, Ec2CallError, InProcess

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import NetworkInterfaceTypeDef, SubnetTypeDef

PAGE_SIZE = 100
"""Items per page: unpaginated DescribeNetworkInterfaces is blocked in large accounts
(amazon-vpc-resource-controller-k8s #188)."""

NO_PREFIXES = "InsufficientCidrBlocks"
"""EC2's code where a subnet has room but no whole block. Where it has no room either, the answer
is a bare InvalidParameterValue that says so in words (cilium/cilium#31016)."""

NO_IP_TYPES = {"efa-only", "trunk", "branch"}
"""Interface types that carry no addresses for pods: never ours, whatever their tags say."""


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


@dataclass(frozen=True, slots=True)
class CallFailure:
    """What failed: an EC2 action, or one kind of it in one subnet, and EC2's code and words."""

    scope: str
    code: str
    message: str


class Ec2:
    """The ENIs of one instance.

    Args:
        instance_id: the instance.
        region: where it is.
        journal: where creations are written down.
        clock: monotonic seconds.
        caller: who makes the calls; by default this process.

    Attributes:
        calls: EC2 calls made since the start, by action; for ``status`` and the benchmarks.
    """

    def __init__(
        self,
        instance_id: str,
        region: str,
        journal: Journal,
        *,
        clock: Callable[[], float] = time.monotonic,
        caller: Caller | None = None,
    ) -> None:
        self._instance_id = instance_id
        self._caller = caller or InProcess(region)
        self._journal = journal
        self._clock = clock
        self._limits: dict[str, Limits | None] = {}
        self._answers: list[Answer] = []
        self._failures: list[CallFailure] = []
        self._successes: list[str] = []
        self._buckets: dict[str, Bucket] = {}
        self.calls: Counter[str] = Counter()

    def observe(self, desired: Iterable[Pool]) -> Cloud:
        """Describe the instance's ENIs, those of ours that are attached to nothing, and subnets.

        What EC2 has answered to our own calls within the last minute is in the look, even if this
        answer of EC2 lacks it.

        Raises:
            ObserveError: EC2 did not answer, or refused.
        """
        pool = next(iter(desired))
        try:
            interfaces = self._interfaces()
            subnets = self._subnets(pool, interfaces)
            limits = pool.limits or self._instance_limits(pool.node.instance_type)
        except Ec2CallError as error:
            raise ObserveError("EC2", str(error)) from error
        try:
            enis = [_decode(i, subnets[i["SubnetId"]].cidr, self._instance_id) for i in interfaces]
        except (LookupError, ValueError) as error:
            # Half an answer is none: eventual consistency can show an ENI before its subnet.
            raise ObserveError("EC2", f"its answer lacks {error}") from error
        oldest = self._clock() - TRUST_S
        self._answers = [a for a in self._answers if a.at >= oldest]
        told = overlay(enis, self._answers)
        return Cloud(told, limits, subnets, is_behind(enis, told))

    def apply(self, actions: Sequence[Ec2Action]) -> tuple[ApplyError, ...]:
        """Carry out actions in order; one that fails does not stop the others."""
        failures = []
        for action in actions:
            try:
                self._apply_one(action)
            except Ec2CallError as error:
                failures.append(self._translate(action, error))
            except OSError as error:
                number = error.errno or 0
                failures.append(ApplyError.from_errno(str(action), number, str(error), error))
        return tuple(failures)

    def know(self, instance_type: str, limits: Limits) -> None:
        """Take over what an earlier process has asked: the limits of a type never change."""
        self._limits.setdefault(instance_type, limits)

    def drain(self) -> tuple[tuple[CallFailure, ...], tuple[str, ...]]:
        """Return what failed and which actions succeeded since this was last asked."""
        result = tuple(self._failures), tuple(self._successes)
        self._failures, self._successes = [], []
        return result

    def leaked(self, tags: dict[str, str], vpc_id: str = "") -> list[Eni]:
        """Describe every ENI with these tags that is attached to nothing, whoever created it.

        Raises:
            ObserveError: EC2 did not answer, or refused.
        """
        filters = [{"Name": f"tag:{k}", "Values": [v]} for k, v in sorted(tags.items())]
        filters += [
            {"Name": "tag-key", "Values": [INSTANCE_TAG]},
            {"Name": "status", "Values": ["available"]},
        ]
        if vpc_id:
            filters.append({"Name": "vpc-id", "Values": [vpc_id]})
        try:
            found = self._describe_interfaces(filters)
        except Ec2CallError as error:
            raise ObserveError("EC2", str(error)) from error
        return [_decode(i, ip_network("0.0.0.0/0"), self._instance_id) for i in found]

    # -- changes --------------------------------------------------------------------------

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
                self._call(
                    "modify_network_interface_attribute",
                    NetworkInterfaceId=action.eni_id,
                    Groups=list(action.security_groups),
                )
            case AssignAddresses() | AssignPrefixes() | DelegatePrefix():
                self._assign(action)
            case ReleaseAddresses():
                self._release(action.eni_id, PrivateIpAddresses=action.addresses)
            case ReleasePrefixes():
                self._release(action.eni_id, Ipv4Prefixes=action.prefixes)
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
            answer = self._call(
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
        interface = answer["NetworkInterface"]
        # The subnet's CIDR is not in the answer; the next look has it, and nobody needs it before.
        eni = _decode(interface, ip_network("0.0.0.0/0"), self._instance_id)
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
        answer = self._call(
            "attach_network_interface",
            NetworkInterfaceId=eni_id,
            InstanceId=instance_id,
            DeviceIndex=device_index,
        )
        attachment = str(answer["AttachmentId"])
        self._learn(eni_id, attached=(device_index, attachment))
        return attachment

    def _tie(self, eni_id: str, attachment_id: str) -> None:
        self._call(
            "modify_network_interface_attribute",
            NetworkInterfaceId=eni_id,
            Attachment={"AttachmentId": attachment_id, "DeleteOnTermination": True},
        )
        self._learn(eni_id, tied=True)

    def _adopt(self, action: AdoptEni) -> None:
        tags = [{"Key": key, "Value": value} for key, value in action.tags]
        self._call("create_tags", Resources=[action.eni_id], Tags=tags)
        self._learn(action.eni_id, adopted=True)
        keys = [{"Key": key} for key in action.obsolete]
        self._call("delete_tags", Resources=[action.eni_id], Tags=keys)
        self._learn(action.eni_id, disowned=True)

    def _assign(self, action: AssignAddresses | AssignPrefixes | DelegatePrefix) -> None:
        if isinstance(action, DelegatePrefix):
            self._delegate(action)
            return
        arguments: dict[str, Any] = {}
        match action:
            case AssignAddresses(addresses=()):
                arguments["SecondaryPrivateIpAddressCount"] = action.count
            case AssignAddresses():
                arguments["PrivateIpAddresses"] = [str(a) for a in action.addresses]
            case AssignPrefixes(prefixes=()):
                arguments["Ipv4PrefixCount"] = action.count
            case AssignPrefixes():
                arguments["Ipv4Prefixes"] = [str(p) for p in action.prefixes]
        answer = self._call(
            "assign_private_ip_addresses", NetworkInterfaceId=action.eni_id, **arguments
        )
        addresses = answer.get("AssignedPrivateIpAddresses", [])
        prefixes = answer.get("AssignedIpv4Prefixes", [])
        added = {host_network(ip_address(a["PrivateIpAddress"])) for a in addresses}
        added |= {ip_network(p["Ipv4Prefix"]) for p in prefixes}
        self._learn(action.eni_id, added=frozenset(added))

    def _delegate(self, action: DelegatePrefix) -> None:
        named = action.prefix
        what: dict[str, Any] = {"Ipv6Prefixes": [str(named)]} if named else {"Ipv6PrefixCount": 1}
        answer = self._call("assign_ipv6_addresses", NetworkInterfaceId=action.eni_id, **what)
        added = frozenset(ip_network(p) for p in answer.get("AssignedIpv6Prefixes", []))
        self._learn(action.eni_id, added=added)

    def _release(self, eni_id: str, **what: Sequence[Any]) -> None:
        ((name, items),) = what.items()
        gone = frozenset(ip_network(str(i)) for i in items)
        try:
            self._call(
                "unassign_private_ip_addresses",
                NetworkInterfaceId=eni_id,
                **{name: [str(i) for i in items]},
            )
        except Ec2CallError as error:
            # An earlier answer, or a late look, would show them as ours, and a pod get one.
            if _may_have_happened(error):
                self._learn(eni_id, removed=gone)
            raise
        self._learn(eni_id, removed=gone)

    def _remove(self, action: DetachEni | DeleteEni) -> None:
        match action:
            case DetachEni():
                self._call("detach_network_interface", AttachmentId=action.attachment_id)
                self._learn(action.eni_id, detached=True)
            case DeleteEni():
                self._call("delete_network_interface", NetworkInterfaceId=action.eni_id)
                self._learn(action.eni_id, deleted=True)

    def _learn(self, eni_id: str, **effect: Any) -> None:
        self._answers.append(Answer(self._clock(), eni_id, **effect))

    # -- looks ----------------------------------------------------------------------------

    def _interfaces(self) -> list[NetworkInterfaceTypeDef]:
        """Two questions, because EC2 joins filters by AND: attached here, or ours and free."""
        attached = self._describe_interfaces(
            [{"Name": "attachment.instance-id", "Values": [self._instance_id]}]
        )
        free = self._describe_interfaces(
            [
                {"Name": f"tag:{INSTANCE_TAG}", "Values": [self._instance_id]},
                {"Name": "status", "Values": ["available"]},
            ]
        )
        return list({i["NetworkInterfaceId"]: i for i in [*free, *attached]}.values())

    def _describe_interfaces(self, filters: list[Any]) -> list[NetworkInterfaceTypeDef]:
        return self._pages("describe_network_interfaces", "NetworkInterfaces", Filters=filters)

    def _subnets(self, pool: Pool, interfaces: list[NetworkInterfaceTypeDef]) -> dict[str, Subnet]:
        """Describe the subnets of the ENIs, and those that the document names."""
        found: list[SubnetTypeDef] = []
        wanted = {i["SubnetId"] for i in interfaces} | set(pool.subnets)
        if pool.selector and interfaces:
            filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in pool.selector]
            filters.append({"Name": "vpc-id", "Values": [interfaces[0]["VpcId"]]})
            found = self._pages("describe_subnets", "Subnets", Filters=filters)
            wanted -= {s["SubnetId"] for s in found}
        if wanted:
            # By filter, not by id: one id that does not exist would fail the whole call.
            filters = [{"Name": "subnet-id", "Values": sorted(wanted)}]
            found = [*found, *self._pages("describe_subnets", "Subnets", Filters=filters)]
        blocks = self._free_blocks(found) if pool.prefixes else {}
        return {s["SubnetId"]: _decode_subnet(s, blocks.get(s["SubnetId"])) for s in found}

    def _free_blocks(self, subnets: list[SubnetTypeDef]) -> dict[str, int]:
        """Count whole free blocks; EC2 has no figure for it, so every ENI there is looked at."""
        ids = sorted(s["SubnetId"] for s in subnets)
        taken: dict[str, set[int]] = {subnet_id: set() for subnet_id in ids}
        for interface in self._describe_interfaces([{"Name": "subnet-id", "Values": ids}]):
            numbers = taken[interface["SubnetId"]]
            for address in interface.get("PrivateIpAddresses", []):
                numbers.add(int(ip_address(address["PrivateIpAddress"])))
            for prefix in interface.get("Ipv4Prefixes", []):
                numbers.update(map(int, ip_network(prefix["Ipv4Prefix"])))
        return {
            s["SubnetId"]: free_blocks(ip_network(s["CidrBlock"]), taken[s["SubnetId"]])
            for s in subnets
        }

    def _instance_limits(self, instance_type: str) -> Limits | None:
        """Ask once: the limits of a type never change. None if EC2 does not know it."""
        if instance_type not in self._limits:
            try:
                answer = self._call("describe_instance_types", InstanceTypes=[instance_type])
            except Ec2CallError as error:
                if error.code not in {"InvalidInstanceType", "InvalidParameterValue"}:
                    raise
                self._limits[instance_type] = None
                return None
            info = answer["InstanceTypes"][0]["NetworkInfo"]
            self._limits[instance_type] = Limits(
                enis=int(info["MaximumNetworkInterfaces"]),
                addresses_per_eni=int(info["Ipv4AddressesPerInterface"]),
            )
        return self._limits[instance_type]

    # -- calls ----------------------------------------------------------------------------

    def _pages(self, method: str, result: str, **arguments: Any) -> list[Any]:
        items: list[Any] = []
        token: dict[str, str] = {}
        while True:
            answer = self._call(method, MaxResults=PAGE_SIZE, **arguments, **token)
            items += answer[result]
            if not answer.get("NextToken"):
                return items
            token = {"NextToken": answer["NextToken"]}

    def _call(self, method: str, **arguments: Any) -> Any:
        action = _operation(method)
        bucket, granted = budget.take(self._buckets.get(action), action, self._clock())
        self._buckets[action] = bucket
        if not granted:
            why = f"this node's budget of {action} calls is used up"
            raise Ec2CallError(action, "BudgetExhausted", why, refused=True)
        self.calls[action] += 1
        answer = self._caller(action, method, arguments)
        self._successes.append(action)
        return answer

    def _translate(self, action: Ec2Action, error: Ec2CallError) -> ApplyError:
        code, call = error.code, error.operation_name
        subnet_id = _subnet(action)
        if code == "InvalidParameterValue" and "sufficient free Ipv4" in error.message:
            code = NO_PREFIXES
        exhausted = budget.classify(code) is budget.Failure.EXHAUSTED
        kind = "prefixes" if code == NO_PREFIXES else "addresses"
        scope = f"{kind}:{subnet_id}" if exhausted and subnet_id else call
        self._failures.append(CallFailure(scope, code, error.message))
        retryable = budget.classify(code) is not budget.Failure.DENIED
        failure = ApplyError(str(action), code, error.message, retryable=retryable)
        failure.__cause__ = error
        return failure


def _operation(method: str) -> str:
    return "".join(word.capitalize() for word in method.split("_"))


def _may_have_happened(error: Ec2CallError) -> bool:
    """Whether a call that failed may have had its effect: nobody knows what was not answered."""
    return not error.refused or budget.classify(error.code) is budget.Failure.LOST


def _subnet(action: Ec2Action) -> str:
    match action:
        case AddEni():
            return action.creation.subnet_id
        case AssignAddresses() | AssignPrefixes() | DelegatePrefix():
            return action.subnet_id
        case _:
            return ""


def _decode(interface: NetworkInterfaceTypeDef, cidr: IpNetwork, instance_id: str) -> Eni:
    attachment = interface.get("Attachment")
    here = attachment if attachment and attachment.get("InstanceId") == instance_id else None
    index = here["DeviceIndex"] if here else None
    tags = {t["Key"]: t["Value"] for t in interface.get("TagSet", [])}
    usable = (
        interface.get("InterfaceType") not in NO_IP_TYPES and tags.get(UNMANAGED_TAG) != "true"
    )
    addresses = interface.get("PrivateIpAddresses", [])
    prefixes = interface.get("Ipv4Prefixes", [])
    return Eni(
        eni_id=interface["NetworkInterfaceId"],
        mac=interface["MacAddress"].lower(),
        device_index=index,
        status=here["Status"] if here else interface["Status"],
        subnet_id=interface["SubnetId"],
        subnet_cidr=cidr,
        primary=ip_address(interface.get("PrivateIpAddress", "0.0.0.0")),
        secondaries=tuple(
            sorted(ip_address(a["PrivateIpAddress"]) for a in addresses if not a.get("Primary"))
        ),
        security_groups=tuple(sorted(g["GroupId"] for g in interface.get("Groups", []))),
        attachment_id=here["AttachmentId"] if here else None,
        delete_on_termination=bool(attachment and attachment.get("DeleteOnTermination")),
        # The primary is part of the instance; nobody else can own it.
        owned=(tags.get(INSTANCE_TAG) == instance_id and usable) or index == 0,
        prefixes=tuple(sorted(ip_network(p["Ipv4Prefix"]) for p in prefixes)),
        creation=tags.get(CREATION_TAG, ""),
        created_at=_moment(tags.get(CREATED_TAG, "")),
        stock=tags.get(STOCK_INSTANCE_TAG) == instance_id and usable,
        stock_tags=tuple(sorted(filter(is_stock_tag, tags))),
        boundless=tuple(
            sorted(ip_network(p["Ipv6Prefix"]) for p in interface.get("Ipv6Prefixes", []))
        ),
        host_addresses=tuple(
            ip_address(a["Ipv6Address"]) for a in interface.get("Ipv6Addresses", [])
        ),
    )


def _decode_subnet(subnet: SubnetTypeDef, blocks: int | None) -> Subnet:
    tags = sorted((t["Key"], t["Value"]) for t in subnet.get("Tags", []))
    return Subnet(
        subnet_id=subnet["SubnetId"],
        zone=subnet["AvailabilityZone"],
        cidr=ip_network(subnet["CidrBlock"]),
        free=int(subnet["AvailableIpAddressCount"]),
        blocks=blocks,
        tags=tuple(tags),
        families=("ipv4", "ipv6") if _has_ipv6(subnet) else ("ipv4",),
    )


def _has_ipv6(subnet: SubnetTypeDef) -> bool:
    blocks = subnet.get("Ipv6CidrBlockAssociationSet", [])
    states = (b.get("Ipv6CidrBlockState", {}).get("State") for b in blocks)
    return "associated" in states


def _moment(text: str) -> float | None:
    """Return an RFC 3339 time in seconds since the epoch; None if it is no such time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
