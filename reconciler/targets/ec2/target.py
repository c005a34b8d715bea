"""EC2: one instance's ENIs, looked at and changed.

Nothing is retried here: the loop looks again before it repeats anything, and only a look can tell
whether a call whose answer was lost has happened.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from reconciler.core.facts import Eni
from reconciler.domains.eni import plan as plan_pool
from reconciler.errors import ObserveError
from reconciler.ipam import budget
from reconciler.ipam.cloud import INSTANCE_TAG, Cloud, Limits, OtherCard, Unread
from reconciler.ipam.ec2_action import AddEni
from reconciler.ipam.pool_status import Pool
from reconciler.ipam.sources import TRUST_S
from reconciler.targets.ec2.caller import Caller, Ec2CallError, InProcess
from reconciler.targets.ec2.calls import Calls, TooLongError, matching, operation
from reconciler.targets.ec2.changes import Ec2Changes, Journal
from reconciler.targets.ec2.decode import Listed, decode_interface, decode_limits, place, unread
from reconciler.targets.ec2.sources import VpcSources
from reconciler.targets.ec2.tally import Tally
from reconciler.targets.values import MalformedError, Object, entries

log = logging.getLogger(__name__)

MAX_ENIS = 200
"""ENIs that are attached to the instance, on all network cards, or ours and free; no instance type
has more than 64, and ours are deleted while there are few."""

MAX_LEAKED = 5000
"""ENIs that ``gc`` looks at in one run."""

FREE_SHARE = 0.9
"""Of ``reconcile.ec2Resync``: how long ENIs of ours that are attached to nothing are not listed,
unless one is missed. Less than 1, so that each look that is due by time has it."""

UNKNOWN_TYPE = "InvalidInstanceType"
"""EC2's code of an instance type that it does not know."""

AVAILABLE = matching("status", "available")


@dataclass
class Look:
    """What one look has read of ENIs, by id, and what of it could not be."""

    instance_id: str
    primary_mac: str
    found: dict[str, Listed] = field(default_factory=dict)
    other_cards: list[OtherCard] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """Ids of all that it has seen."""
        return self.found.keys() | {u.name for u in self.unread}

    def add(self, body: Object, *, attached: bool) -> None:
        """Read one ENI of a list, of those attached here say; the first with an id counts."""
        try:
            listed = decode_interface(body, self.instance_id, self.primary_mac, attached=attached)
        except MalformedError as error:
            self.unread.append(unread("eni", body, str(error)))
            return
        if isinstance(listed, OtherCard):
            self.other_cards.append(listed)
        elif listed.eni.eni_id not in self.names:
            self.found[listed.eni.eni_id] = listed

    def without_doubles(self) -> tuple[dict[str, Listed], list[Unread]]:
        """Take out ENIs with the same MAC: each is known to the kernel by it, and one is wrong."""
        count = Counter(i.eni.mac for i in self.found.values())
        kept = {name: i for name, i in self.found.items() if count[i.eni.mac] == 1}
        same = [i.eni for name, i in self.found.items() if name not in kept]
        return kept, [_unread(e, f"another ENI has its MAC {e.mac} too") for e in same]


class Ec2(Ec2Changes):
    """The ENIs of one instance; the calls are made by this process unless a caller is given.

    ``calls`` counts those made since the start, by action; ``drain`` returns what failed and which
    actions succeeded since it was last called. ``sources`` is asked beside all of this; its calls
    are in ``tally`` too.
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
        caller = caller or InProcess(region)
        self.tally = Tally()
        calls = Calls(caller, clock, self.tally)
        super().__init__(instance_id, calls, journal, clock)
        self.calls = calls.made
        self.drain = calls.drain
        # Its actions are others, and so are their buckets; another thread calls them.
        self.sources = VpcSources(Calls(caller, clock, self.tally))
        self._limits: dict[str, Limits] = {}
        self._free_at: float | None = None
        self._missed_until = float("-inf")

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
            raise _unanswered(error) from error
        return self.told()

    def suppose(self, cloud: Cloud) -> None:
        """Take an earlier look for what EC2 would show now, because metadata agrees with it."""
        self._shown, self._subnets.is_room_fresh = cloud, False

    def know(self, instance_type: str, limits: Limits) -> None:
        """Take over what an earlier process has asked: the limits of a type never change."""
        self._limits.setdefault(instance_type, limits)

    def leaked(self, tags: dict[str, str]) -> list[Eni]:
        """Describe every ENI with these tags that is attached to nothing, of any node."""
        filters = [matching(f"tag:{key}", value) for key, value in sorted(tags.items())]
        filters += [matching("tag-key", INSTANCE_TAG), AVAILABLE]
        look = Look(self._instance_id, "")
        try:
            for body in self._calls.interfaces(filters, most=MAX_LEAKED):
                look.add(body, attached=False)
        except TooLongError as error:
            log.warning("the rest is the next run's turn", extra={"why": str(error)})
        except Ec2CallError as error:
            raise _unanswered(error) from error
        for one in look.unread:
            log.warning("an ENI is left alone", extra={"why": one.why})
        return [i.eni for i in look.found.values() if i.eni.status == "available"]

    def _look(self, pool: Pool) -> None:
        self._subnets.is_room_fresh = False
        look = Look(self._instance_id, pool.node.primary_mac)
        # EC2 joins filters by AND, so what is ours and free is a question of its own.
        here = [matching("attachment.instance-id", self._instance_id)]
        for body in self._calls.interfaces(here, most=MAX_ENIS):
            look.add(body, attached=True)
        before = self.calls["DescribeInstanceTypes"]
        limits, unread_type = (pool.limits, []) if pool.limits else self._instance_limits(pool)
        is_short = self.calls["DescribeInstanceTypes"] > before  # a node's very first look
        if self._seeks_free(pool, look) and not is_short:
            self._list_free(look)
        look.unread += unread_type
        self._arrange(pool, look, limits)
        # What else is asked for depends on what will be planned; the pass plans again.
        plan = plan_pool(pool, self.told())
        creates = any(isinstance(action, AddEni) for action in plan.actions)
        if creates and self._free_at is None:
            self._list_free(look)  # one may be there already
        if self._subnets.needs_room(plan, creates=creates):
            self._subnets.describe(pool, look.found)
        self._arrange(pool, look, limits)

    def _arrange(self, pool: Pool, look: Look, limits: Limits | None) -> None:
        """Put what was read into one look, beside what could not be."""
        listed, more = look.without_doubles()
        described = self._subnets.known(pool, listed)
        more += look.unread
        enis = []
        for one in listed.values():
            try:
                enis.append(place(one.eni, described.subnets))
            except MalformedError as error:
                more.append(_unread(one.eni, str(error)))
        whole = (*more, *described.unread)
        others = tuple(look.other_cards)
        self._shown = Cloud(
            tuple(enis), limits, described.subnets, unread=whole, other_cards=others
        )

    def _list_free(self, look: Look) -> None:
        """What is ours and attached to nothing; a part of it is good enough."""
        ours = matching(f"tag:{INSTANCE_TAG}", self._instance_id)
        try:
            for body in self._calls.interfaces([ours, AVAILABLE], most=MAX_ENIS):
                look.add(body, attached=False)
        except TooLongError as error:
            look.unread.append(Unread("eni", "", str(error)))
        self._free_at = self._clock()

    def _seeks_free(self, pool: Pool, look: Look) -> bool:
        """Whether one of ours may be attached to nothing: one is missed, or it is time to look."""
        now = self._clock()
        known = {e.eni_id for e in self.told().enis}
        known |= {a.eni_id for a in pool.attachments if a.eni_id}
        seen = {i.eni.creation for i in look.found.values()}
        if known - look.names or any(
            not c.done and c.token not in seen for c in pool.ec2.creations
        ):
            self._missed_until = now + TRUST_S  # EC2 may show it late
        resync_s = pool.document.reconcile.ec2_resync.total_seconds()
        is_due = self._free_at is None or now - self._free_at >= FREE_SHARE * resync_s
        return is_due or now < self._missed_until

    def _instance_limits(self, pool: Pool) -> tuple[Limits | None, list[Unread]]:
        """Ask until EC2 has told: the limits of a type never change.

        What failed gets a backoff like any other call, and costs no more than that the pool stays
        as it is.
        """
        kind = pool.node.instance_type
        if kind in self._limits:
            return self._limits[kind], []
        method = "describe_instance_types"
        if rest := pool.ec2.backoffs.of(operation(method), pool.clock):
            return None, [Unread("instance-type", kind, f"{rest.code}: {rest.message}")]
        try:
            answer = self._calls(method, InstanceTypes=[kind])
            (info,) = entries(answer, "InstanceTypes", 1, required=True) or [{}]
            self._limits[kind] = decode_limits(info)
        except (Ec2CallError, MalformedError) as error:
            code = error.code if isinstance(error, Ec2CallError) else UNKNOWN_TYPE
            code = UNKNOWN_TYPE if code == "InvalidParameterValue" else code
            self._calls.fail(operation(method), code, str(error))
            return None, [Unread("instance-type", kind, str(error))]
        return self._limits[kind], []


def _unanswered(error: Ec2CallError) -> ObserveError:
    why = f"{error}{budget.cure(error.operation_name, error.code)}"
    return ObserveError("EC2", why, reason=error.code)


def _unread(eni: Eni, why: str) -> Unread:
    return Unread("eni", eni.eni_id, why, eni.device_index)
