"""EC2: one instance's ENIs, looked at and changed.

Nothing is retried here: the loop looks again before it repeats anything, and only a look can tell
whether a call whose answer was lost has happened. Who makes the calls is ``ec2_caller``.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import IPv4Network, ip_network
from typing import Any, Protocol

from reconciler.core.facts import Eni
from reconciler.domains.eni import plan as plan_pool
from reconciler.engine.plan import Plan
from reconciler.errors import ApplyError, ObserveError
from reconciler.ipam import budget
from reconciler.ipam.budget import Bucket
from reconciler.ipam.cloud import CREATED_TAG, CREATION_TAG, INSTANCE_TAG, Cloud, Limits, Unread
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
from reconciler.ipam.pool_status import Pool
from reconciler.ipam.read_your_writes import TRUST_S, Answer, is_behind, overlay
from reconciler.ipam.subnet import RESERVED_LOW, Subnet, free_blocks
from reconciler.targets.ec2.caller import ANSWER_LOST, Caller, Ec2CallError, InProcess
from reconciler.targets.ec2.decode import (
    Listed,
    decode_assigned,
    decode_delegated,
    decode_interface,
    decode_limits,
    decode_subnet,
    place,
    taken_numbers,
    unread_interface,
    unread_subnet,
)
from reconciler.targets.ec2.fields import ID, TOKEN, MalformedError, Object, entries, inner

log = logging.getLogger(__name__)

PAGE_SIZE = 100
"""Items per page: unpaginated DescribeNetworkInterfaces is blocked in large accounts
(amazon-vpc-resource-controller-k8s #188)."""

NO_PREFIXES = "InsufficientCidrBlocks"
"""EC2's code where a subnet has room but no whole block. Where it has no room either, the answer
is a bare InvalidParameterValue that says so in words (cilium/cilium#31016)."""

MAX_ENIS = 200
"""ENIs that are attached to the instance, on all network cards, or ours and free; no instance type
has more than 64, and ours are deleted while there are few."""

MAX_SUBNETS = 500
"""Subnets of one question: a selector can find all of a VPC (quota: 200, can be raised)."""

MAX_NEIGHBOURS = 5000
"""ENIs in the subnets that blocks are counted in. Pages beyond it would use up the node's budget
of calls for a look."""

MAX_LEAKED = 5000
"""ENIs that ``gc`` looks at in one run."""

MAX_VALUES = 200
"""Values of one filter (EC2 API reference, "List and filter resources": at most 200)."""

TOO_MANY = "AnswerTooLong"
"""The code of a list that does not end."""

SUBNETS_S = 3 * 3600.0
"""Seconds for which a subnet's zone, CIDRs and tags are taken for what they were."""

ROOM_S = 600.0
"""Seconds for which what a subnet had free is good enough to choose it for a new ENI. If it has
less, EC2 refuses, and it is described anew at once."""

FREE_SHARE = 0.9
"""Of ``reconcile.ec2Resync``: how long nobody looks for ENIs of ours that are attached to nothing,
unless one is missed. Less than 1, so that each look that is due by time has it."""

NO_ROOM = {"SubnetExhausted", "SubnetRejected"}
"""Reasons of the plan that a fresh description of the subnets may end."""

UNKNOWN_TYPE = "InvalidInstanceType"
"""EC2's code of an instance type that it does not know."""


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
class _Described:
    """Subnets as they were described.

    Attributes:
        at: monotonic seconds.
        asked: what decides which are described, and how.
        subnets: by id, of those that could be read.
        unread: those that could not.
        is_told: by EC2; or else it is what metadata tells of the primary ENI's subnet.
    """

    at: float
    asked: tuple[object, ...]
    subnets: dict[str, Subnet]
    unread: tuple[Unread, ...]
    is_told: bool = True


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
        self._limits: dict[str, Limits] = {}
        self._described: _Described | None = None
        self._is_room_fresh = self._is_room_unsure = False
        self._fragmented: set[str] = set()
        self._free_at: float | None = None
        self._missed_until = float("-inf")
        self._shown = Cloud((), None, {})
        self._answers: list[Answer] = []
        self._failures: list[CallFailure] = []
        self._successes: list[str] = []
        self._buckets: dict[str, Bucket] = {}
        self.calls: Counter[str] = Counter()

    def observe(self, desired: Iterable[Pool]) -> Cloud:
        """Describe the instance's ENIs, and whatever else the plan depends on.

        What EC2 has answered to our own calls within the last minute is in the look, even if this
        answer of EC2 lacks it. What one look leaves out, because nothing depends on it yet, a
        later one brings: ENIs of ours that are attached to nothing, and the room in subnets.

        Raises:
            ObserveError: EC2 did not answer, or refused.
        """
        try:
            self._look(next(iter(desired)))
        except Ec2CallError as error:
            why = f"{error}{budget.cure(error.operation_name, error.code)}"
            raise ObserveError("EC2", why, reason=error.code) from error
        return self.told()

    def suppose(self, cloud: Cloud) -> None:
        """Take an earlier look for what EC2 would show now, because metadata agrees with it."""
        self._shown, self._is_room_fresh = cloud, False

    def _look(self, pool: Pool) -> None:
        self._is_room_fresh = False
        found: dict[str, Listed] = {}
        unread: list[Unread] = []
        self._list_attached(pool, found, unread)
        before = self.calls["DescribeInstanceTypes"]
        limits, unread_type = (pool.limits, []) if pool.limits else self._instance_limits(pool)
        is_short = self.calls["DescribeInstanceTypes"] > before  # a node's very first look
        if self._seeks_free(pool, found, unread) and not is_short:
            self._list_free(pool, found, unread)
        unread += unread_type
        self._arrange(pool, found, unread, limits)
        plan = plan_pool(pool, self.told())
        creates = any(isinstance(action, AddEni) for action in plan.actions)
        if creates and self._free_at is None:
            self._list_free(pool, found, unread)  # one may be there already
        if self._needs_room(plan, creates=creates):
            self._described = self._describe_subnets(pool, found)
        self._arrange(pool, found, unread, limits)

    def _arrange(
        self,
        pool: Pool,
        found: Mapping[str, Listed],
        unread: Sequence[Unread],
        limits: Limits | None,
    ) -> None:
        """Put what was read into one look, beside what could not be."""
        listed, more = _without_doubles(found)
        described = self._known_subnets(pool, listed)
        more += unread
        enis = []
        for one in listed.values():
            try:
                enis.append(_placed(one.eni, described.subnets))
            except MalformedError as error:
                more.append(_unread(one.eni, str(error)))
        whole = (*more, *described.unread)
        self._shown = Cloud(tuple(enis), limits, described.subnets, unread=whole)

    def _needs_room(self, plan: Plan, *, creates: bool) -> bool:
        """Whether what is planned depends on how much room subnets have now."""
        assert self._described is not None
        if self._is_room_fresh:
            return False
        is_old = not self._described.is_told or self._clock() - self._described.at >= ROOM_S
        unsure = self._is_room_unsure and bool(plan.actions)
        return unsure or (creates and is_old) or any(r.reason in NO_ROOM for r in plan.refusals)

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
        found: list[Eni] = []
        try:
            for body in self._describe_interfaces(filters, most=MAX_LEAKED):
                found += self._free(body)
        except Ec2CallError as error:
            if error.code != TOO_MANY:
                why = f"{error}{budget.cure(error.operation_name, error.code)}"
                raise ObserveError("EC2", why, reason=error.code) from error
            log.warning("the rest is the next run's turn", extra={"why": str(error)})
        return found

    def _free(self, body: Object) -> list[Eni]:
        """Read an ENI that is attached to nothing; one that cannot be read is left alone."""
        try:
            listed = decode_interface(body, self._instance_id)
        except MalformedError as error:
            log.warning("an ENI is left alone", extra={"why": str(error)})
            return []
        return [listed.eni] if listed and listed.eni.status == "available" else []

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
        with _reading("create_network_interface"):
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
        answer = self._call(
            "attach_network_interface",
            NetworkInterfaceId=eni_id,
            InstanceId=instance_id,
            DeviceIndex=device_index,
        )
        with _reading("attach_network_interface"):
            attachment = ID.of(answer, "AttachmentId")
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
        with _reading("assign_private_ip_addresses"):
            added = decode_assigned(answer)
        self._learn(action.eni_id, added=added)

    def _delegate(self, action: DelegatePrefix) -> None:
        named = action.prefix
        what: dict[str, Any] = {"Ipv6Prefixes": [str(named)]} if named else {"Ipv6PrefixCount": 1}
        answer = self._call("assign_ipv6_addresses", NetworkInterfaceId=action.eni_id, **what)
        with _reading("assign_ipv6_addresses"):
            added = decode_delegated(answer)
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

    def _list_attached(self, pool: Pool, found: dict[str, Listed], unread: list[Unread]) -> None:
        """What is attached here: all of it, or there is no look.

        EC2 joins filters by AND, so what is ours and free is a question of its own.
        """
        filters = [{"Name": "attachment.instance-id", "Values": [self._instance_id]}]
        for body in self._describe_interfaces(filters, most=MAX_ENIS):
            self._read(pool, body, found, unread, attached=True)

    def _list_free(self, pool: Pool, found: dict[str, Listed], unread: list[Unread]) -> None:
        """What is ours and attached to nothing; a part of it is good enough."""
        filters = [
            {"Name": f"tag:{INSTANCE_TAG}", "Values": [self._instance_id]},
            {"Name": "status", "Values": ["available"]},
        ]
        try:
            for body in self._describe_interfaces(filters, most=MAX_ENIS):
                self._read(pool, body, found, unread, attached=False)
        except Ec2CallError as error:
            if error.code != TOO_MANY:
                raise
            unread.append(Unread("eni", "", str(error)))
        self._free_at = self._clock()

    def _read(
        self,
        pool: Pool,
        body: Object,
        found: dict[str, Listed],
        unread: list[Unread],
        *,
        attached: bool,
    ) -> None:
        try:
            listed = decode_interface(
                body, self._instance_id, pool.node.primary_mac, attached=attached
            )
        except MalformedError as error:
            unread.append(unread_interface(body, str(error)))
            return
        known = found.keys() | {u.name for u in unread}
        if listed is not None and listed.eni.eni_id not in known:
            found[listed.eni.eni_id] = listed

    def _seeks_free(
        self, pool: Pool, found: Mapping[str, Listed], unread: Sequence[Unread]
    ) -> bool:
        """Whether one of ours may be attached to nothing: one is missed, or it is time to look."""
        now = self._clock()
        known = {e.eni_id for e in self.told().enis}
        known |= {a.eni_id for a in pool.attachments if a.eni_id}
        seen = {i.eni.creation for i in found.values()}
        missed = known - found.keys() - {u.name for u in unread}
        if missed or any(not c.done and c.token not in seen for c in pool.creations):
            self._missed_until = now + TRUST_S  # EC2 may show it late
        resync_s = pool.document.reconcile.ec2_resync.total_seconds()
        is_due = self._free_at is None or now - self._free_at >= FREE_SHARE * resync_s
        return is_due or now < self._missed_until

    def _describe_interfaces(self, filters: list[Any], *, most: int) -> Iterator[Object]:
        what = "describe_network_interfaces", "NetworkInterfaces"
        return self._pages(*what, most=most, Filters=filters)

    def _known_subnets(self, pool: Pool, interfaces: Mapping[str, Listed]) -> _Described:
        """Return the subnets as last described, if that is good enough."""
        known = self._described
        good = known is not None and (
            known.asked == _asked(pool, interfaces)
            and (self._is_room_fresh or _is_whole(known, interfaces))
            and self._clock() - known.at < SUBNETS_S
        )
        if known is None or not good or not known.is_told:
            supposed = _suppose_subnet(pool, interfaces, self._clock())
            known = known if known and good else None
            self._described = supposed or known or self._describe_subnets(pool, interfaces)
        assert self._described is not None
        return self._described

    def _describe_subnets(self, pool: Pool, interfaces: Mapping[str, Listed]) -> _Described:
        at = self._clock()
        subnets, unread = self._subnets(pool, interfaces)
        self._is_room_fresh, self._is_room_unsure = True, False
        return _Described(at, _asked(pool, interfaces), subnets, tuple(unread))

    def _subnets(
        self, pool: Pool, interfaces: Mapping[str, Listed]
    ) -> tuple[dict[str, Subnet], list[Unread]]:
        """Describe the subnets of the ENIs, and those that the document names.

        A selector asks in the primary ENI's VPC only: no other can be attached here.
        """
        primary = next((i for i in interfaces.values() if i.eni.is_primary), None)
        questions: list[list[Any]] = []
        if pool.selector and primary:
            filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in pool.selector]
            questions.append([*filters, {"Name": "vpc-id", "Values": [primary.vpc_id]}])
        wanted = sorted({i.eni.subnet_id for i in interfaces.values()} | set(pool.subnets))
        # By filter, not by id: one id that does not exist would fail the whole call.
        questions += [[{"Name": "subnet-id", "Values": ids}] for ids in _parts(wanted)]
        found: dict[str, Subnet] = {}
        unread: list[Unread] = []
        for filters in questions:
            try:
                self._list_subnets(filters, pool, found, unread)
            except Ec2CallError as error:
                if error.code != TOO_MANY:
                    raise
                # Those that were listed do; an ENI whose subnet is not among them is unread.
                unread.append(Unread("subnet", "", str(error)))
        if pool.prefixes:
            found, unknown = self._blocks(found, interfaces)
            unread += unknown
        return found, unread

    def _blocks(
        self, subnets: Mapping[str, Subnet], interfaces: Mapping[str, Listed]
    ) -> tuple[dict[str, Subnet], list[Unread]]:
        """Say how many whole free blocks subnets have.

        EC2 has no figure for it: every ENI in the subnet has to be looked at. So it is counted
        only where EC2 has refused one; elsewhere it is what our own addresses leave, at most.
        """
        counted = {name: s for name, s in subnets.items() if name in self._fragmented}
        most = {name: _most_blocks(s, interfaces) for name, s in subnets.items()}
        if not counted:
            return most, []
        known, unknown = self._count_blocks(counted)
        return most | known, unknown

    def _list_subnets(
        self, filters: list[Any], pool: Pool, found: dict[str, Subnet], unread: list[Unread]
    ) -> None:
        for body in self._pages("describe_subnets", "Subnets", most=MAX_SUBNETS, Filters=filters):
            try:
                subnet = decode_subnet(body)
            except MalformedError as error:
                unread.append(unread_subnet(body, str(error)))
            else:
                # A subnet's other tags are nothing to us, and may be many.
                tags = tuple(t for t in subnet.tags if t in pool.selector)
                found[subnet.subnet_id] = replace(subnet, tags=tags)

    def _count_blocks(
        self, subnets: Mapping[str, Subnet]
    ) -> tuple[dict[str, Subnet], list[Unread]]:
        """Count whole free blocks.

        Of a subnet with an ENI that cannot be read, or with too many, the number is not known.
        """
        taken: dict[str, set[int]] = {name: set() for name in subnets}
        unknown: dict[str, Unread] = {}
        for ids in _parts(sorted(subnets)):
            filters = [{"Name": "subnet-id", "Values": ids}]
            try:
                for body in self._describe_interfaces(filters, most=MAX_NEIGHBOURS):
                    _count(body, taken, unknown)
            except Ec2CallError as error:
                if error.code != TOO_MANY:
                    raise
                unknown |= {name: Unread("subnet", name, str(error)) for name in ids}
        counted = {n: replace(s, blocks=free_blocks(s.cidr, taken[n])) for n, s in subnets.items()}
        return counted | {n: subnets[n] for n in unknown}, list(unknown.values())

    def _instance_limits(self, pool: Pool) -> tuple[Limits | None, list[Unread]]:
        """Ask until EC2 has told: the limits of a type never change.

        What failed gets a backoff like any other call, and costs no more than that the pool stays
        as it is.
        """
        kind = pool.node.instance_type
        if kind in self._limits:
            return self._limits[kind], []
        method = "describe_instance_types"
        if rest := pool.backoffs.of(_operation(method), pool.clock):
            return None, [Unread("instance-type", kind, f"{rest.code}: {rest.message}")]
        try:
            answer = self._call(method, InstanceTypes=[kind])
            (info,) = entries(answer, "InstanceTypes", 1, required=True) or [{}]
            self._limits[kind] = decode_limits(info)
        except (Ec2CallError, MalformedError) as error:
            code = error.code if isinstance(error, Ec2CallError) else UNKNOWN_TYPE
            known = code not in {UNKNOWN_TYPE, "InvalidParameterValue"}
            self._failures.append(
                CallFailure(_operation(method), code if known else UNKNOWN_TYPE, str(error))
            )
            return None, [Unread("instance-type", kind, str(error))]
        return self._limits[kind], []

    # -- calls ----------------------------------------------------------------------------

    def _pages(self, method: str, result: str, *, most: int, **arguments: Any) -> Iterator[Object]:
        """Yield what all pages have, one page in memory at a time.

        Raises:
            Ec2CallError: a page cannot be had, or there are more than may be.
        """
        token: dict[str, str] = {}
        for _ in range(most // PAGE_SIZE):
            answer = self._call(method, MaxResults=PAGE_SIZE, **arguments, **token)
            with _reading(method):
                yield from entries(answer, result, PAGE_SIZE, required=True)
                if answer.get("NextToken") in (None, ""):
                    return
                token = {"NextToken": TOKEN.of(answer, "NextToken")}
        why = f"its list of {result} does not end, or has more than {most}"
        raise Ec2CallError(_operation(method), TOO_MANY, why)

    def _call(self, method: str, **arguments: Any) -> Object:
        action = _operation(method)
        bucket, granted = budget.take(self._buckets.get(action), action, self._clock())
        self._buckets[action] = bucket
        if not granted:
            why = f"this node's budget of {action} calls is used up"
            raise Ec2CallError(action, "BudgetExhausted", why, refused=True)
        self.calls[action] += 1
        answer = self._caller(action, method, arguments)
        if not isinstance(answer, Mapping):
            raise Ec2CallError(action, ANSWER_LOST, "its answer is no object")
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
        if scope == call or not self._is_news_of_room(kind, subnet_id):
            self._failures.append(CallFailure(scope, code, error.message))
        # An action may make several calls: the one that failed is named.
        why = f"{call}: {error.message}{budget.cure(call, code)}"
        retryable = budget.classify(code) is not budget.Failure.DENIED
        failure = ApplyError(str(action), code, why, retryable=retryable)
        failure.__cause__ = error
        return failure

    def _is_news_of_room(self, kind: str, subnet_id: str) -> bool:
        """Note that a subnet has less room than was believed, and so must be described anew.

        Returns whether that is news: then the call was made on what was not known well enough,
        and is planned anew without a rest.
        """
        known = subnet_id in self._fragmented if kind == "prefixes" else self._is_room_fresh
        if kind == "prefixes":
            self._fragmented.add(subnet_id)
        self._is_room_unsure = True
        return not known


def _operation(method: str) -> str:
    return "".join(word.capitalize() for word in method.split("_"))


def _may_have_happened(error: Ec2CallError) -> bool:
    """Whether a call that failed may have had its effect: what was not answered is unknown."""
    return not error.refused or budget.classify(error.code) is budget.Failure.LOST


def _asked(pool: Pool, interfaces: Mapping[str, Listed]) -> tuple[object, ...]:
    ids = frozenset(i.eni.subnet_id for i in interfaces.values())
    vpc = next((i.vpc_id for i in interfaces.values() if i.eni.is_primary), "")
    return (ids, vpc, pool.subnets, pool.selector, pool.prefixes)


def _is_whole(known: _Described, interfaces: Mapping[str, Listed]) -> bool:
    """Whether every subnet could be read, and those of all ENIs are among them."""
    return not known.unread and known.subnets.keys() >= {
        i.eni.subnet_id for i in interfaces.values()
    }


def _suppose_subnet(pool: Pool, interfaces: Mapping[str, Listed], at: float) -> _Described | None:
    """Return what metadata tells of the subnet, if the primary ENI's is the only one there is.

    How much room it has nobody tells: it may have all that our own addresses leave.
    """
    node = pool.node
    cidr = next((c for c in node.subnet_cidrs if isinstance(c, IPv4Network)), None)
    families = tuple(sorted({f"ipv{c.version}" for c in node.subnet_cidrs}))
    primary = next((i for i in interfaces.values() if i.eni.is_primary), None)
    if primary is None or cidr is None or not set(pool.families) <= set(families):
        return None
    name = primary.eni.subnet_id
    if {i.eni.subnet_id for i in interfaces.values()} != {name}:
        return None
    if (pool.subnets or pool.selector) and len(interfaces) > 1:
        return None  # whether the others are where they should be, only EC2 tells
    free = cidr.num_addresses - RESERVED_LOW - 1
    subnet = Subnet(
        name,
        node.availability_zone,
        cidr,
        free,
        families=families,
        vpc_id=primary.vpc_id,
        is_described=False,
    )
    subnet = _most_blocks(subnet, interfaces) if pool.prefixes else subnet
    return _Described(at, _asked(pool, interfaces), {name: subnet}, (), is_told=False)


def _most_blocks(subnet: Subnet, interfaces: Mapping[str, Listed]) -> Subnet:
    """Count the blocks that are free as far as our own addresses tell."""
    mine = [i.eni for i in interfaces.values() if i.eni.subnet_id == subnet.subnet_id]
    taken = {int(a) for e in mine for a in (e.primary, *e.pod_addresses)}
    return replace(subnet, blocks=free_blocks(subnet.cidr, taken))


def _subnet(action: Ec2Action) -> str:
    match action:
        case AddEni():
            return action.creation.subnet_id
        case AssignAddresses() | AssignPrefixes() | DelegatePrefix():
            return action.subnet_id
        case _:
            return ""


@contextmanager
def _reading(method: str) -> Iterator[None]:
    """An answer that cannot be read is as good as none: whether it has happened, a look tells."""
    try:
        yield
    except MalformedError as error:
        why = f"its answer cannot be read: {error}"
        raise Ec2CallError(_operation(method), ANSWER_LOST, why) from error


def _placed(eni: Eni, subnets: Mapping[str, Subnet]) -> Eni:
    """Put an ENI into its subnet; eventual consistency can show an ENI before that.

    Raises:
        MalformedError: the subnet cannot be read, or the ENI holds what is not of it.
    """
    if eni.subnet_id not in subnets:
        raise MalformedError(f"its subnet {eni.subnet_id}", None, "among the subnets")
    return place(eni, subnets[eni.subnet_id])


def _count(body: Object, taken: dict[str, set[int]], unknown: dict[str, Unread]) -> None:
    """Count one ENI's addresses as taken in its subnet."""
    try:
        name, numbers = taken_numbers(body)
    except MalformedError as error:
        entry = unread_subnet(body, f"its free blocks cannot be counted: {error}")
        names = [entry.name] if entry.name in taken else taken
        unknown.update({name: replace(entry, name=name) for name in names})
    else:
        taken.get(name, set()).update(numbers)


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split what does not go into one filter."""
    for start in range(0, len(names), MAX_VALUES):
        yield names[start : start + MAX_VALUES]


def _unread(eni: Eni, why: str) -> Unread:
    return Unread("eni", eni.eni_id, why, eni.device_index)


def _without_doubles(found: Mapping[str, Listed]) -> tuple[dict[str, Listed], list[Unread]]:
    """Take out ENIs with the same MAC: each is known to the kernel by it, and one is wrong."""
    count = Counter(i.eni.mac for i in found.values())
    kept = {name: i for name, i in found.items() if count[i.eni.mac] == 1}
    same = [i.eni for name, i in found.items() if name not in kept]
    return kept, [_unread(e, f"another ENI has its MAC {e.mac} too") for e in same]
