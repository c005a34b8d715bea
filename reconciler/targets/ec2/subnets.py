"""Subnets: described when something depends on them; until then the last description holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Network

from reconciler.engine.plan import Plan
from reconciler.ipam import budget
from reconciler.ipam.cloud import (
    NOTHING_RESERVED,
    PREFIX_SIZE,
    RESERVED_LOW,
    Reserved,
    Subnet,
    Unread,
    free_blocks,
)
from reconciler.ipam.pool_status import Pool
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import (
    Calls,
    Filters,
    TooLongError,
    matching,
    operation,
    parts,
    reading,
)
from reconciler.targets.ec2.decode import (
    Listed,
    decode_reservations,
    decode_subnet,
    taken_numbers,
    unread,
)
from reconciler.targets.values import MalformedError, Object
from schemas.group import PodGroup
from schemas.pool import Eni

MAX_SUBNETS = 500
"""Subnets of one question: a selector can find all of a VPC (quota: 200, can be raised)."""

MAX_NEIGHBOURS = 5000
"""ENIs in the subnets that blocks are counted in. Pages beyond it would use up the node's budget
of calls for a look."""

SUBNETS_S = 3 * 3600.0
"""Seconds for which a subnet's zone, CIDRs and tags are taken for what they were."""

ROOM_S = 600.0
"""Seconds for which what a subnet had free is good enough to choose it for a new ENI. If it has
less, EC2 refuses, and it is described anew at once."""

RESERVATIONS = "get_subnet_cidr_reservations"

MAX_RESERVATIONS = 500
"""CIDR reservations of one subnet."""

MAX_RESERVED = 8
"""Subnets of one look whose CIDR reservations are asked for: each costs a call."""

AMPLE = 16 * PREFIX_SIZE
"""Addresses that are free in a subnet whose reservations need not be asked for: without them, or
with them, EC2 has more blocks than one growth asks for."""

NO_ROOM = {"SubnetExhausted", "SubnetRejected"}
"""Reasons of the plan that a fresh description of the subnets may end."""

Interfaces = Mapping[str, Listed]
"""The ENIs of a look, by id."""


@dataclass(frozen=True, slots=True)
class Described:
    """Subnets as they were described, by id, and those that could not be read.

    ``asked``: what decides which are described, and how. ``is_told``: by EC2; or else it is what
    metadata tells of the primary ENI's subnet.
    """

    at: float
    asked: tuple[object, ...]
    subnets: dict[str, Subnet]
    unread: tuple[Unread, ...]
    is_told: bool = True


class Subnets:
    """The subnets that an instance's ENIs are in or may be created in.

    ``is_room_fresh``: they were described in this look.
    """

    def __init__(self, calls: Calls, clock: Callable[[], float]) -> None:
        self._calls = calls
        self._clock = clock
        self._described: Described | None = None
        self.is_room_fresh = self._is_room_unsure = False
        self._fragmented: set[str] = set()

    def known(self, pool: Pool, interfaces: Interfaces) -> Described:
        """Return the subnets as last described, if that is good enough."""
        known, now = self._described, self._clock()
        if known is not None and not (
            known.asked == _asked(pool, interfaces)
            and (self.is_room_fresh or _is_whole(known, interfaces))
            and now - known.at < SUBNETS_S
        ):
            known = None
        if known is None or not known.is_told:
            supposed = _suppose_subnet(pool, interfaces, now)
            known = supposed or known or self.describe(pool, interfaces)
        self._described = known
        return known

    def describe(self, pool: Pool, interfaces: Interfaces) -> Described:
        """Ask EC2 for them now."""
        at = self._clock()
        subnets, unknown = self._subnets(pool, interfaces)
        self.is_room_fresh, self._is_room_unsure = True, False
        self._described = Described(at, _asked(pool, interfaces), subnets, tuple(unknown))
        return self._described

    def _subnets(
        self, pool: Pool, interfaces: Interfaces
    ) -> tuple[dict[str, Subnet], list[Unread]]:
        """Describe the subnets of the ENIs, and those that the document names."""
        primary = _primary(interfaces)
        questions: list[Filters] = []
        wanted, selectors = _named(pool)
        if primary:
            vpc = matching("vpc-id", primary.vpc_id)
            questions += [[*(matching(f"tag:{k}", v) for k, v in s), vpc] for s in selectors]
        asked = {*pool.document.eni.exclude_subnet_tags}.union(*selectors)
        wanted |= _subnet_ids(interfaces)
        # By filter, not by id: one id that does not exist would fail the whole call.
        questions += [[matching("subnet-id", *ids)] for ids in parts(wanted)]
        found: dict[str, Subnet] = {}
        unknown: list[Unread] = []
        pages = partial(self._calls.pages, "describe_subnets", "Subnets", most=MAX_SUBNETS)
        for filters in questions:
            try:
                for body in pages(filters):
                    try:
                        subnet = decode_subnet(body)
                    except MalformedError as error:
                        unknown.append(unread("subnet", body, str(error)))
                        continue
                    # A subnet's other tags are nothing to us, and may be many.
                    tags = tuple(t for t in subnet.tags if t in asked)
                    found[subnet.subnet_id] = replace(subnet, tags=tags)
            except TooLongError as error:
                # Those that were listed do; an ENI whose subnet is not among them is unread.
                unknown.append(Unread("subnet", "", str(error)))
        if pool.prefixes:
            found, uncounted = self._blocks(pool, found, interfaces)
            unknown += uncounted
        return found, unknown

    def _reserved(
        self, pool: Pool, subnets: Mapping[str, Subnet]
    ) -> tuple[dict[str, Reserved], dict[str, str]]:
        """Ask for the CIDR reservations that blocks may depend on, and say why some are unknown.

        What is reserved for prefixes does not count as free (seen in awslabs/eks-perf-tests #511,
        where a subnet that was reserved as a whole had 0), and EC2 takes prefixes from there. So
        they matter where little is free, or EC2 has refused a block.
        """
        zone, call = pool.node.availability_zone, operation(RESERVATIONS)
        here = {n: s for n, s in subnets.items() if s.zone == zone and "ipv4" in s.families}
        names = [n for n, s in here.items() if s.free < AMPLE or n in self._fragmented]
        found = dict.fromkeys(subnets, NOTHING_RESERVED)
        if rest := pool.ec2.backoffs.of(call, pool.clock):
            return found, dict.fromkeys(names, f"{rest.code}: {rest.message}")
        for number, name in enumerate(names[:MAX_RESERVED]):
            pages = self._calls.pages(
                RESERVATIONS, "SubnetIpv4CidrReservations", most=MAX_RESERVATIONS, SubnetId=name
            )
            try:
                with reading(RESERVATIONS):
                    found[name] = decode_reservations(pages)
            except Ec2CallError as error:
                self._calls.fail(call, error.code, error.message)
                why = f"{error}{budget.cure(call, error.code)}"
                return found, dict.fromkeys(names[number:], why)
        return found, {}

    def _blocks(
        self, pool: Pool, subnets: Mapping[str, Subnet], interfaces: Interfaces
    ) -> tuple[dict[str, Subnet], list[Unread]]:
        """Say how many whole free blocks subnets have.

        EC2 has no figure for it: every ENI in the subnet has to be looked at. So it is counted
        only where EC2 has refused one; elsewhere it is what our own addresses leave, at most. Of a
        subnet with an ENI that cannot be read, or with too many, the number is not known.
        """
        reserved, hidden = self._reserved(pool, subnets)
        subnets = {
            name: replace(
                subnet,
                blocks_apart=bool(reserved[name].prefixes),
                reservations_unknown=hidden.get(name, ""),
            )
            for name, subnet in subnets.items()
        }
        taken: dict[str, set[int]] = {name: set() for name in subnets.keys() & self._fragmented}
        unknown: dict[str, Unread] = {}
        for ids in parts(taken):
            filters = [matching("subnet-id", *ids)]
            try:
                for body in self._calls.interfaces(filters, most=MAX_NEIGHBOURS):
                    _count(body, taken, unknown)
            except TooLongError as error:
                unknown |= {name: Unread("subnet", name, str(error)) for name in ids}
        most = {
            name: _most_blocks(subnet, interfaces, reserved[name])
            for name, subnet in subnets.items()
            if name not in taken
        }
        counted = {
            name: replace(
                subnets[name], blocks=free_blocks(subnets[name].cidr, numbers, reserved[name])
            )
            for name, numbers in taken.items()
            if name not in unknown
        }
        return {**subnets, **most, **counted}, list(unknown.values())

    def needs_room(self, plan: Plan, *, creates: bool) -> bool:
        """Whether what is planned depends on how much room subnets have now."""
        assert self._described is not None
        if self.is_room_fresh:
            return False
        is_old = not self._described.is_told or self._clock() - self._described.at >= ROOM_S
        unsure = self._is_room_unsure and bool(plan.actions)
        return unsure or (creates and is_old) or any(r.reason in NO_ROOM for r in plan.refusals)

    def is_news_of_room(self, kind: str, subnet_id: str) -> bool:
        """Note that a subnet has less room than was believed; it must be described anew.

        Returns whether that is news: then the call is planned anew without a rest.
        """
        known = subnet_id in self._fragmented if kind == "prefixes" else self.is_room_fresh
        if kind == "prefixes":
            self._fragmented.add(subnet_id)
        self._is_room_unsure = True
        return not known


def _asked(pool: Pool, interfaces: Interfaces) -> tuple[object, ...]:
    primary, eni = _primary(interfaces), pool.document.eni
    vpc = primary.vpc_id if primary else ""
    tags = eni.exclude_subnet_tags, eni.subnet_order
    return (_subnet_ids(interfaces), vpc, _named(pool), tags, pool.prefixes)


def _named(pool: Pool) -> tuple[set[str], tuple[tuple[tuple[str, str], ...], ...]]:
    """Return the subnets that the document names, and the tags by which it selects others."""
    given: tuple[Eni | PodGroup, ...] = (pool.document.eni, *pool.document.pod_groups)
    names = {name for one in given for name in one.subnets}
    return names, tuple(dict.fromkeys(one.subnet_tags for one in given if one.subnet_tags))


def _primary(interfaces: Interfaces) -> Listed | None:
    return next((i for i in interfaces.values() if i.eni.is_primary), None)


def _subnet_ids(interfaces: Interfaces) -> frozenset[str]:
    return frozenset(i.eni.subnet_id for i in interfaces.values())


def _is_whole(known: Described, interfaces: Interfaces) -> bool:
    """Whether every subnet could be read, and those of all ENIs are among them."""
    return not known.unread and known.subnets.keys() >= _subnet_ids(interfaces)


def _suppose_subnet(pool: Pool, interfaces: Interfaces, at: float) -> Described | None:
    """Return what metadata tells of the subnet, if the primary ENI's is the only one there is.

    How much room it has is not known: it may have all that our own addresses leave.
    """
    node = pool.node
    cidr = next((c for c in node.subnet_cidrs if isinstance(c, IPv4Network)), None)
    families = tuple(sorted({f"ipv{c.version}" for c in node.subnet_cidrs}))
    primary = _primary(interfaces)
    if primary is None or cidr is None or not set(pool.document.families) <= set(families):
        return None
    name = primary.eni.subnet_id
    if _subnet_ids(interfaces) != {name}:
        return None
    eni = pool.document.eni
    if eni.exclude_subnet_tags or (eni.subnet_order == "most-free" and len(eni.subnets) > 1):
        return None  # only EC2 tells what a subnet is tagged with, and how much room it has
    if any(g.subnets or g.subnet_tags for g in pool.document.pod_groups):
        return None  # a group's first pod waits for an ENI: where that goes must be known by then
    if any(_named(pool)) and len(interfaces) > 1:
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
    return Described(at, _asked(pool, interfaces), {name: subnet}, (), is_told=False)


def _most_blocks(
    subnet: Subnet, interfaces: Interfaces, reserved: Reserved = NOTHING_RESERVED
) -> Subnet:
    """Count the blocks that are free as far as our own addresses tell."""
    mine = [i.eni for i in interfaces.values() if i.eni.subnet_id == subnet.subnet_id]
    taken = {int(a) for e in mine for a in (e.primary, *e.pod_addresses)}
    return replace(subnet, blocks=free_blocks(subnet.cidr, taken, reserved))


def _count(body: Object, taken: dict[str, set[int]], unknown: dict[str, Unread]) -> None:
    """Count one ENI's addresses as taken in its subnet."""
    try:
        name, numbers = taken_numbers(body)
    except MalformedError as error:
        entry = unread("subnet", body, f"its free blocks cannot be counted: {error}")
        names = [entry.name] if entry.name in taken else taken
        unknown.update({name: replace(entry, name=name) for name in names})
    else:
        taken.get(name, set()).update(numbers)
