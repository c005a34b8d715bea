"""EC2 and instance metadata in memory, held to the real targets' contract (tests/targets)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_network
from itertools import count
from typing import Any

from fakes import CrashError, RefusedError

from reconciler.core.datapath import host_network
from reconciler.core.facts import Eni, Node
from reconciler.egress.observation import Question
from reconciler.egress.source import Failure as NoAnswer
from reconciler.egress.source import Look
from reconciler.errors import ApplyError, ObserveError
from reconciler.ipam import budget
from reconciler.ipam.budget import Failure, classify
from reconciler.ipam.cloud import (
    INSTANCE_TAG,
    NOTHING_RESERVED,
    Cloud,
    Limits,
    Subnet,
    Unread,
    free_blocks,
)
from reconciler.ipam.ec2_action import (
    AddEni,
    AdoptEni,
    AssignAddresses,
    AssignPrefixes,
    AttachEni,
    DelegatePrefix,
    DeleteEni,
    DetachEni,
    Ec2Action,
    ReleaseAddresses,
    ReleasePrefixes,
    SetIdleTimeouts,
    SetSecurityGroups,
    TieToInstance,
)
from reconciler.ipam.pool_status import Pool
from reconciler.ipam.release import unit_networks
from reconciler.ipam.sources import TRUST_S, Answer, is_behind, overlay
from reconciler.targets.ec2.calls import CallFailure
from reconciler.targets.ec2.changes import Journal
from reconciler.targets.ec2.tally import OK, Tally


class FakeSources:
    """What sources stand for, by name; a name that is not there is answered with a failure."""

    def __init__(self) -> None:
        self.answers: dict[str, Look | NoAnswer] = {}
        self.asked: list[Question] = []

    @property
    def calls(self) -> Counter[str]:
        return Counter({"DescribeVpcPeeringConnections": 2 * len(self.asked)})

    def look(self, question: Question) -> dict[str, Look | NoAnswer]:
        self.asked.append(question)
        denied = NoAnswer("DescribeVpcPeeringConnections", "UnauthorizedOperation", "no")
        return {name: self.answers.get(name, denied) for name in question.names}


def within(address: Any, networks: Iterable[Any]) -> bool:
    return any(address in network for network in networks)


class FakeEc2:
    """One instance's ENIs, in subnets of one zone, with its type's limits.

    Attributes:
        fault: what the next call meets: a code "before" its effect, a lost answer "after" it, or
            the death of the caller: "crash before", "crash after".
        lag: looks show the world as it was so many calls ago.
        hidden: networks that looks leave out.
        unreadable: ids of ENIs of which looks can tell no more than that they are there.
        knows_type: whether it tells what the instance type allows.
    """

    def __init__(
        self,
        enis: Iterable[Eni],
        limits: Limits,
        cidr: IPv4Network,
        taken: Iterable[Any] = (),
        *,
        journal: Journal | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.enis = list(enis)
        self.limits = limits
        self.fault: tuple[str, str] | None = None
        self.lag = 0
        self.hidden: set[Any] = set()
        self.unreadable: set[str] = set()
        self.knows_type = True
        self.calls: Counter[str] = Counter()
        self.sources = FakeSources()
        self.tally = Tally()
        self.log: list[str] = []
        self._cidr = self.cidr = cidr
        self._taken = set(taken)
        self._journal = journal
        self._clock = clock or (lambda: 0.0)
        self._tokens: dict[str, str] = {}
        self._history: list[list[Eni]] = []
        self._answers: list[Answer] = []
        self._failures: list[CallFailure] = []
        self._successes: list[str] = []
        self._last_look = Cloud((), None, {})
        self._made = 0
        self._delegated = count(1)
        self.families: tuple[str, ...] = ("ipv4", "ipv6")
        self.reserved = NOTHING_RESERVED

    def observe(self, desired: Iterable[Pool] = ()) -> Cloud:
        pool = next(iter(desired), None)
        self._count("DescribeNetworkInterfaces")
        now = list(self.enis)
        past = [*self._history, now][-1 - min(self.lag, len(self._history))]
        seen = [self._as_shown(e) for e in past if e.eni_id not in self.unreadable]
        unread = [e for e in past if e.eni_id in self.unreadable]
        name = self.enis[0].subnet_id
        blocks = free_blocks(self._cidr, {int(a) for a in self._used()}, self.reserved)
        subnet = Subnet(
            name,
            "us-east-1a",
            self._cidr,
            sum(not within(a, self.reserved.prefixes) for a in self._free()),
            blocks if pool and pool.prefixes else None,
            blocks_apart=bool(pool and pool.prefixes and self.reserved.prefixes),
            families=self.families,
            vpc_id="vpc-1",
        )
        self._last_look = Cloud(
            tuple(seen),
            self.limits if self.knows_type else None,
            {name: subnet},
            unread=tuple(Unread("eni", e.eni_id, "test", e.device_index) for e in unread),
        )
        return self.told()

    def suppose(self, cloud: Cloud) -> None:
        self._last_look = cloud

    def told(self) -> Cloud:
        oldest = self._clock() - TRUST_S
        self._answers = [a for a in self._answers if a.at >= oldest]
        names = {u.name for u in self._last_look.unread}
        answers = [a for a in self._answers if a.eni_id not in names]
        told = overlay(self._last_look.enis, answers)
        return replace(self._last_look, enis=told, behind=is_behind(self._last_look.enis, told))

    def apply(self, actions: Sequence[Ec2Action]) -> tuple[ApplyError, ...]:
        failures = []
        for action in actions:
            try:
                self._apply_one(action)
            except RefusedError as error:
                call, code = error.args
                subnet_id = getattr(action, "subnet_id", "") or self.enis[0].subnet_id
                exhausted = classify(code) is Failure.EXHAUSTED
                kind = "prefixes" if code == "InsufficientCidrBlocks" else "addresses"
                scope = f"{kind}:{subnet_id}" if exhausted else call
                self._failures.append(CallFailure(scope, code, ""))
                failures.append(ApplyError(str(action), code, ""))
        return tuple(failures)

    def know(self, instance_type: str, limits: Limits) -> None:
        assert limits == self.limits

    def drain(self) -> tuple[tuple[CallFailure, ...], tuple[str, ...]]:
        result = tuple(self._failures), tuple(self._successes)
        self._failures, self._successes = [], []
        return result

    # -- what others do in EC2 -------------------------------------------------------------

    def detach_by_hand(self, eni_id: str) -> None:
        """Somebody detaches an ENI in the console."""
        self._history.append(list(self.enis))
        self._change(eni_id, device_index=None, status="available", attachment_id=None)

    def settle(self) -> None:
        """EC2 finishes what it had begun."""
        for eni in self.enis:
            if eni.status == "attaching":
                self._change(eni.eni_id, status="attached")
            if eni.status == "detaching":
                self.detach_by_hand(eni.eni_id)

    def holds(self) -> set[Any]:
        """Return every pod address that EC2 really assigns to an attached ENI of the node."""
        return {a for e in self.enis if e.device_index is not None for a in e.pod_addresses}

    # -- calls ----------------------------------------------------------------------------

    def restart(self) -> None:
        """Whoever asks is another process: what it was answered is forgotten."""
        self._answers.clear()
        self._failures.clear()
        self._successes.clear()

    def _apply_one(self, action: Ec2Action) -> None:  # noqa: C901, PLR0912 - a case for each action
        match action:
            case AddEni():
                self._attach(self._create(action), action.creation.device_index)
            case AttachEni():
                self._attach(action.eni_id, action.device_index)
            case TieToInstance():
                with self._call("ModifyNetworkInterfaceAttribute"):
                    self._change(action.eni_id, delete_on_termination=True)
                self._learn(action.eni_id, changed={"delete_on_termination": True})
            case AdoptEni():
                with self._call("CreateTags"):
                    self._change(action.eni_id, owned=True)
                self._learn(action.eni_id, changed={"owned": True})
                with self._call("DeleteTags"):
                    self._change(action.eni_id, stock=False, stock_tags=())
                self._learn(action.eni_id, changed={"stock": False, "stock_tags": ()})
            case SetSecurityGroups():
                with self._call("ModifyNetworkInterfaceAttribute"):
                    self._change(action.eni_id, security_groups=action.security_groups)
                self._learn(action.eni_id, changed={"security_groups": action.security_groups})
            case SetIdleTimeouts():
                with self._call("ModifyNetworkInterfaceAttribute"):
                    self._change(action.eni_id, idle_timeouts=action.timeouts)
                self._learn(action.eni_id, changed={"idle_timeouts": action.timeouts})
            case AssignAddresses():
                with self._call("AssignPrivateIpAddresses"):
                    eni = self._get(action.eni_id, "AssignPrivateIpAddresses")
                    fresh = self._room(eni, action)
                    held = sorted((*eni.secondaries, *fresh))
                    self._change(eni.eni_id, secondaries=tuple(held))
                self._learn(action.eni_id, added=frozenset(map(host_network, fresh)))
            case AssignPrefixes():
                with self._call("AssignPrivateIpAddresses"):
                    eni = self._get(action.eni_id, "AssignPrivateIpAddresses")
                    blocks = self._blocks(eni, action)
                    held = sorted((*eni.prefixes, *blocks))
                    self._change(eni.eni_id, prefixes=tuple(held))
                self._learn(action.eni_id, added=frozenset(blocks))
            case DelegatePrefix():
                with self._call("AssignIpv6Addresses"):
                    eni = self._get(action.eni_id, "AssignIpv6Addresses")
                    prefix = action.prefix or self._ipv6_prefix("AssignIpv6Addresses")
                    if any(prefix in e.ipv6_prefixes for e in self.enis):
                        raise RefusedError("AssignIpv6Addresses", "InvalidIPAddress.InUse")
                    self._change(eni.eni_id, ipv6_prefixes=(*eni.ipv6_prefixes, prefix))
                self._learn(action.eni_id, added=frozenset({prefix}))
            case ReleaseAddresses():
                gone = frozenset(map(host_network, action.units))
                with self._releasing(action.eni_id, gone):
                    eni = self._get(action.eni_id, "UnassignPrivateIpAddresses")
                    if not set(action.units) <= set(eni.secondaries):
                        raise RefusedError("UnassignPrivateIpAddresses", "InvalidParameterValue")
                    left = tuple(a for a in eni.secondaries if a not in action.units)
                    self._change(eni.eni_id, secondaries=left)
            case ReleasePrefixes():
                with self._releasing(action.eni_id, frozenset(action.units)):
                    eni = self._get(action.eni_id, "UnassignPrivateIpAddresses")
                    if not set(action.units) <= set(eni.prefixes):
                        raise RefusedError("UnassignPrivateIpAddresses", "InvalidParameterValue")
                    kept = tuple(p for p in eni.prefixes if p not in action.units)
                    self._change(eni.eni_id, prefixes=kept)
            case DetachEni():
                with self._call("DetachNetworkInterface"):
                    self._get(action.eni_id, "DetachNetworkInterface")
                    self._change(action.eni_id, status="detaching")
                self._learn(action.eni_id, detached=True)
            case DeleteEni():
                with self._call("DeleteNetworkInterface"):
                    eni = self._get(action.eni_id, "DeleteNetworkInterface")
                    if eni.device_index is not None:
                        raise RefusedError("DeleteNetworkInterface", "InvalidParameterValue")
                    self.enis.remove(eni)
                self._learn(action.eni_id, deleted=True)

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        """One call: refused before its effect, or its answer lost after it, as the fault says."""
        self._count(name)
        when, code = self.fault or ("", "")
        self.fault = None
        if when == "crash before":
            raise CrashError
        if when == "before":
            raise RefusedError(name, code)
        self._history.append(list(self.enis))
        yield
        if when == "crash after":
            raise CrashError
        if when == "after":
            raise RefusedError(name, "AnswerLost")
        self._successes.append(name)

    @contextmanager
    def _releasing(self, eni_id: str, gone: frozenset[Any]) -> Iterator[None]:
        """A release; without an answer it may have happened."""
        try:
            with self._call("UnassignPrivateIpAddresses"):
                yield
        except RefusedError as error:
            if error.args[1] == "AnswerLost":
                self._learn(eni_id, removed=gone)
            raise
        self._learn(eni_id, removed=gone)

    def _create(self, action: AddEni) -> str:
        creation = action.creation
        name = "CreateNetworkInterface"
        if self._journal is not None:
            self._journal.record(creation)
        try:
            with self._call(name):
                eni_id = self._tokens.get(creation.token) or self._make(action)
        except RefusedError as error:
            if self._journal is not None and error.args[1] != "AnswerLost":
                self._journal.forget(creation)
            raise
        made = next((e for e in self.enis if e.eni_id == eni_id), None)
        if made is not None and made.device_index is None:
            self._learn(eni_id, created=made)
        return eni_id

    def _make(self, action: AddEni) -> str:
        creation = action.creation
        primary, *secondaries = self._take(1 + creation.addresses, "CreateNetworkInterface")
        ipv6_prefixes = [self._ipv6_prefix("CreateNetworkInterface")] * creation.ipv6_prefixes
        eni_id = f"eni-new{self._made}"
        self._made += 1
        self._tokens[creation.token] = eni_id
        self.enis.append(
            Eni(
                eni_id=eni_id,
                group=creation.group,
                mac=f"02:bb:00:00:00:{self._made:02x}",
                device_index=None,
                status="available",
                subnet_id=creation.subnet_id,
                subnet_cidr=self._cidr,
                primary=primary,
                secondaries=tuple(secondaries),
                security_groups=creation.security_groups,
                owned=dict(creation.tags).get(INSTANCE_TAG) == action.instance_id,
                delete_on_termination=False,
                creation=creation.token,
                created_at=creation.at,
                ipv6_prefixes=tuple(ipv6_prefixes),
            )
        )
        if creation.prefixes:
            eni = self._get(eni_id, "CreateNetworkInterface")
            try:
                blocks = self._free_prefixes(creation.prefixes, "CreateNetworkInterface")
            except RefusedError:
                self.enis.remove(eni)
                del self._tokens[creation.token]
                raise
            self._change(eni_id, prefixes=tuple(blocks))
        return eni_id

    def _attach(self, eni_id: str, index: int) -> None:
        name = "AttachNetworkInterface"
        with self._call(name):
            if self._get(eni_id, name).status != "available":
                raise RefusedError(name, "InvalidParameterValue")
            attached = [e for e in self.enis if e.device_index is not None]
            if index in {e.device_index for e in attached}:
                raise RefusedError(name, "InvalidParameterValue")
            if len(attached) >= self.limits.enis:
                raise RefusedError(name, "AttachmentLimitExceeded")
            attachment = f"eni-attach-{eni_id}"
            self._change(eni_id, device_index=index, status="attached", attachment_id=attachment)
        self._learn(eni_id, attached=(index, attachment))
        with self._call("ModifyNetworkInterfaceAttribute"):
            self._change(eni_id, delete_on_termination=True)
        self._learn(eni_id, changed={"delete_on_termination": True})

    def _room(self, eni: Eni, action: AssignAddresses) -> list[Any]:
        name = "AssignPrivateIpAddresses"
        fresh = [a for a in action.units if a not in eni.secondaries]
        count = action.count + len(fresh)
        if 1 + len(eni.secondaries) + len(eni.prefixes) + count > self.limits.addresses_per_eni:
            raise RefusedError(name, "PrivateIpAddressLimitExceeded")
        if any(a not in self._free() for a in fresh):
            raise RefusedError(name, "InvalidIPAddress.InUse")
        return [*fresh, *self._take(action.count, name)]

    def _blocks(self, eni: Eni, action: AssignPrefixes) -> list[Any]:
        name = "AssignPrivateIpAddresses"
        fresh = [p for p in action.units if p not in eni.prefixes]
        count = action.count + len(fresh)
        if 1 + len(eni.secondaries) + len(eni.prefixes) + count > self.limits.addresses_per_eni:
            raise RefusedError(name, "PrivateIpAddressLimitExceeded")
        used = self._used()
        if any(a in used for p in fresh for a in p):
            raise RefusedError(name, "InvalidIPAddress.InUse")
        return [*fresh, *self._free_prefixes(action.count, name)]

    def _free_prefixes(self, count: int, call: str) -> list[IPv4Network]:
        used = {int(a) for a in self._used()}
        found: list[IPv4Network] = []
        homes, apart = self.reserved.prefixes, self.reserved.explicit
        for block in self._cidr.subnets(new_prefix=28):
            if (homes and not any(map(block.subnet_of, homes))) or within(block[0], apart):
                continue
            numbers = range(int(block[0]), int(block[-1]) + 1)
            usable = range(int(self._cidr[0]) + 4, int(self._cidr[-1]))
            if len(found) < count and all(n in usable and n not in used for n in numbers):
                found.append(block)
        if len(found) < count:
            raise RefusedError(call, "InsufficientCidrBlocks")
        return found

    def _ipv6_prefix(self, call: str) -> Any:
        if "ipv6" not in self.families:
            raise RefusedError(call, "InvalidParameterValue")
        return ip_network(f"2001:db8:1:0:{next(self._delegated):x}::/80")

    def _count(self, name: str) -> None:
        self.calls[name] += 1
        self.tally.note(name, OK, budget.take(None, name, self._clock())[0])
        if not name.startswith("Describe"):
            self.log.append(name)

    def _learn(self, eni_id: str, **effect: Any) -> None:
        self._answers.append(Answer(self._clock(), eni_id, **effect))

    def _as_shown(self, eni: Eni) -> Eni:
        return replace(
            eni,
            secondaries=tuple(a for a in eni.secondaries if host_network(a) not in self.hidden),
            prefixes=tuple(p for p in eni.prefixes if p not in self.hidden),
            ipv6_prefixes=tuple(p for p in eni.ipv6_prefixes if p not in self.hidden),
        )

    def _get(self, eni_id: str, call: str) -> Eni:
        found = next((e for e in self.enis if e.eni_id == eni_id), None)
        if found is None:
            raise RefusedError(call, "InvalidNetworkInterfaceID.NotFound")
        return found

    def _change(self, eni_id: str, **fields: Any) -> None:
        self.enis = [replace(e, **fields) if e.eni_id == eni_id else e for e in self.enis]

    def _used(self) -> set[Any]:
        held = {a for e in self.enis for a in (e.primary, *e.pod_addresses)}
        return held | self._taken

    def _free(self) -> list[Any]:
        used = self._used()
        first = int(self._cidr.network_address) + 4
        numbers = range(first, int(self._cidr.broadcast_address))
        return [a for n in numbers if (a := ip_address(n)) not in used]

    def _take(self, count: int, call: str) -> list[Any]:
        apart = (*self.reserved.prefixes, *self.reserved.explicit)
        free = [a for a in self._free() if not within(a, apart)]
        if len(free) < count:
            raise RefusedError(call, "InsufficientFreeAddressesInSubnet")
        return free[:count]


class FakeImds:
    """Instance metadata of a FakeEc2's instance.

    Attributes:
        empty: it shows no interface at all.
        unreadable: it answers what cannot be read.
    """

    def __init__(self, node: Node, ec2: FakeEc2) -> None:
        self.empty = False
        self.unreadable = False
        self._node = node
        self._ec2 = ec2

    def node(self) -> Node:
        return self._node

    def region(self) -> str:
        return "us-east-1"

    def interfaces(self) -> frozenset[Any]:
        if self.unreadable:
            raise ObserveError("instance metadata", "test")
        if self.empty:
            return frozenset()
        attached = [e for e in self._ec2.enis if e.status == "attached"]
        return frozenset((e.mac, n) for e in attached for n in unit_networks(e))

    def enis(self) -> tuple[Any, ...]:
        shown = [e for e in self._ec2.enis if e.status == "attached"]
        subnet = Subnet(self._ec2.enis[0].subnet_id, "us-east-1a", self._ec2.cidr, 0)
        subnet = replace(subnet, families=self._ec2.families, is_described=False)
        return tuple((replace(e, owned=True), subnet) for e in shown)


def follow_attachments(kernel: Any, ec2: FakeEc2, links: Iterable[str]) -> set[str]:
    """Have links come and go with attachments, as they do on an instance.

    Args:
        kernel: the fake that has links.
        ec2: whose attachments.
        links: MACs of the ENIs that have a link.

    Returns:
        MACs of those that have one now.
    """
    attached = {e.mac: e for e in ec2.enis if e.status in {"attached", "detaching"}}
    before = set(links)
    for mac in before - attached.keys():
        kernel.unplug(mac)
    for mac in attached.keys() - before:
        kernel.plug(mac, f"eth{attached[mac].device_index}")
    return set(attached)
