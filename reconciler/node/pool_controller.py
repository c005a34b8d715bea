"""The pool controller: one pass over EC2, from the observation to the calls.

It holds what must be remembered between looks: the last one, where the sources disagreed, which
calls are in backoff. A change of demand is planned on the last observation first, which costs
nothing; EC2 is observed when something follows from it, or when an observation is due. What shall
be given back is recorded as quarantined first, under the lock that binding takes, so that no pod
can get it meanwhile.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from reconciler.core.attachment import MAX_POD_ADDRESSES
from reconciler.core.datapath import IpAddress, IpNetwork, family_of, unit_of
from reconciler.core.facts import Eni
from reconciler.domains import eni
from reconciler.domains.conntrack import ConntrackFlush
from reconciler.domains.inputs import NO_CALL_BACKOFFS, Inputs
from reconciler.engine.backoff import Delays
from reconciler.engine.converge import Domain, Outcome, Target, converge
from reconciler.engine.plan import Plan
from reconciler.errors import ApplyError, ReconcilerError, boundary
from reconciler.ipam import creation, quarantine
from reconciler.ipam.budget import CallBackoffs, Failure, classify
from reconciler.ipam.cloud import Cloud, arrived
from reconciler.ipam.ec2_action import (
    AddEni,
    AssignAddresses,
    AssignPrefixes,
    ReleaseAddresses,
    ReleasePrefixes,
)
from reconciler.ipam.pace import (
    NOTHING_LEFT,
    UNFINISHED_S,
    Left,
    held_by_mac,
    is_changing,
    observe_after_s,
    plan_after_s,
)
from reconciler.ipam.pool_status import Pool
from reconciler.ipam.records import Records
from reconciler.ipam.source_disagreement import (
    CONFIRM_S,
    NO_DISAGREEMENTS,
    Disagreements,
    Item,
    items,
    weigh,
)
from reconciler.targets.scoped import ObservedTarget

SHRINK_S = 30.0
"""Seconds after a growth for which nothing else is chosen to be given back, so that pods that come
and go all the time do not make addresses do the same."""

HEAR_S = Delays(0.25)
"""Until metadata, which costs nothing and follows within seconds, is read for EC2's answers."""

Witness = frozenset[tuple[str, IpNetwork]] | None
"""What instance metadata shows, by MAC; None if it cannot be read, which proves nothing."""


class Evidence(Protocol):
    """What the kernel holds of pods' addresses."""

    def pod_addresses(self) -> dict[str, tuple[IpAddress, ...]]:
        """Addresses by host end, as the pods' routes say."""
        ...


@dataclass
class PoolController:
    """Keeps the pool of one node at its target.

    Attributes:
        state: where records are; also the target of the quarantine and creation domains.
        ec2: looks and calls.
        netlink, conntrack: what else may hold an address.
        binding: held while an address is bound, or withdrawn from binding.
        disagreements: where EC2 and metadata disagree, as of the last observation.
        backoffs: EC2 actions that are not called for now.
        readings: of metadata since EC2 was last called, those without an answer too.
    """

    state: Any
    ec2: Any
    netlink: Evidence
    conntrack: Target
    binding: AbstractContextManager[Any]
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    nonce: Callable[[], str] = secrets.token_hex
    disagreements: Disagreements = NO_DISAGREEMENTS
    backoffs: CallBackoffs = NO_CALL_BACKOFFS
    readings: int = 0
    _expected: frozenset[Item] = frozenset()
    _macs: Mapping[str, str] = field(default_factory=dict)
    """ENIs by MAC, as metadata names them: also those that EC2 does not show any more."""
    _errors: tuple[ReconcilerError, ...] = ()
    """Of the pass under way, beside those of EC2 itself."""
    _cloud: Cloud | None = None
    _observed_at: float = 0.0
    _called_at: float = float("-inf")
    _grown_at: float = float("-inf")
    _waits_to_shrink: bool = False
    _left: Left = NOTHING_LEFT
    _failed: bool = False
    _unfinished: bool = False
    _has_called: bool = False
    _resync_s: float = 0.0
    _differing: frozenset[tuple[str, IpNetwork]] = frozenset()

    def run(self, inputs: Inputs, metadata: Witness, *, look: bool = True) -> Outcome:
        """Look at EC2, and bring the pool to its target.

        What EC2 answers to the calls is trusted, and metadata or a later observation must show it;
        only if one failed and may have had its effect EC2 is observed again.

        Args:
            inputs: the document, the node, its links.
            metadata: what instance metadata shows, by MAC; None if it cannot be read.
            look: at EC2 first, in any case; or else the last observation does where metadata
                agrees with it and all that is planned is about addresses.

        Raises:
            ObserveError: the kernel or the state directory could not be read.
        """
        self._errors = ()
        try:
            recalled = None if look else self._recall(inputs, metadata)
            inputs, cloud, picks = recalled or self._look(inputs, metadata)
        except _UnreadableError as error:
            self._failed = True
            return Outcome(errors=(error.cause,))
        if recalled is None:
            self._observed_at = self.clock()
        records = self._book(picks, cloud)
        inputs = self._completed(inputs, records, cloud.enis)
        target = AnsweredEc2(self.ec2, cloud, partial(self._write_down, cloud))
        domain = Domain("eni", eni.desire, eni.plan, target)
        outcome = converge([domain], inputs, max_rounds=1)["eni"]
        try:
            with boundary("taking note of EC2's answers"):
                self._take_note()
        except ReconcilerError as error:  # what was seen is seen
            self._errors += (error,)
        # Of less room than was believed the next observation tells more.
        self._failed = not isinstance(outcome.observed, Cloud) or any(
            _kind(error) is Failure.EXHAUSTED for error in outcome.errors
        )
        if isinstance(outcome.observed, Cloud) and isinstance(outcome.desired, Pool):
            self._remember(inputs, cloud, outcome)
            if outcome.plan.actions:
                converge([self._creations(outcome.observed)], None)
        return replace(outcome, errors=(*self._errors, *outcome.errors))

    def foresee(self, inputs: Inputs) -> Outcome | None:
        """Plan on the last observation; None if EC2 must be observed, because something follows.

        Args:
            inputs: the document, the node, its links.

        Raises:
            ObserveError: the kernel or the state directory could not be read.
        """
        self._errors = ()
        if self._cloud is None or self._failed:
            return None
        cloud = arrived(self._cloud, inputs.links)
        changing = _may_change(cloud, inputs.links)
        left = replace(self._left, changing=changing)
        resync_s = inputs.document.reconcile.ec2_resync.total_seconds()
        if self.clock() >= self._look_at(left, resync_s):
            return None
        records = self.state.observe()
        inputs = self._completed(inputs, records, cloud.enis)
        inputs, picks = self._pick(inputs, cloud)
        desired = eni.desire(inputs)
        plan = eni.plan(desired, cloud)
        if plan.actions or quarantine.plan(self._wanted(picks, cloud), records).actions:
            return None
        self._differing |= held_by_mac(cloud) ^ held_by_mac(self._cloud)
        self._left = replace(left, **_lack(desired, plan))
        self._cloud, self._resync_s, self._has_called = cloud, resync_s, False
        return Outcome(desired, cloud, plan, plan, self._errors)

    def hear(self, metadata: Witness) -> bool:
        """Compare metadata with the last observation, and what EC2 has answered since.

        Returns whether it shows a change.

        Args:
            metadata: what instance metadata shows, by MAC.
        """
        if self._cloud is None:
            return True
        shown = metadata or frozenset()
        coming = held_by_mac(self._cloud, "attaching")
        differing = (held_by_mac(self._cloud) ^ shown) - coming
        known, self._differing = self._differing, differing
        confirmed = not differing and coming <= shown and not self.disagreements.missing
        if confirmed and not self._left.late:
            # The second witness has it: no look is needed to show what EC2 has answered since.
            self.disagreements = replace(self.disagreements, unconfirmed={})
            self._left = replace(self._left, disagreeing=False, behind=False)
            self._cloud = replace(self._cloud, behind=False)
        return not differing <= known

    def rehearse(self, inputs: Inputs, metadata: Witness) -> Outcome:
        """Say what ``run`` would do, as if what it would quarantine were so already.

        Raises:
            ObserveError: the kernel or the state directory could not be read.
        """
        try:
            inputs, cloud, picks = self._look(inputs, metadata)
        except _UnreadableError as error:
            return Outcome(errors=(error.cause,))
        quarantined = inputs.ec2.quarantined | picks
        desired = eni.desire(replace(inputs, ec2=replace(inputs.ec2, quarantined=quarantined)))
        plan = eni.plan(desired, cloud)
        return Outcome(desired, cloud, plan, plan)

    @property
    def is_unconfirmed(self) -> bool:
        """Whether EC2 and metadata differ by the last observation.

        Nothing is given back meanwhile.
        """
        return self._left.behind or bool(self.disagreements)

    @property
    def is_pending(self) -> bool:
        """Whether what is not needed cannot be given back yet, or may not."""
        return self.is_unconfirmed or self._waits_to_shrink

    @property
    def hear_after_s(self) -> float:
        """Seconds until metadata is worth reading again for what it has not shown yet."""
        return HEAR_S.after(self.readings + 1) if self.is_unconfirmed else float("inf")

    @property
    def due_s(self) -> float:
        """Seconds until an observation is due, or something can be tried again."""
        now = self.clock()
        waits = [r.until - now for r in self.backoffs.by_scope.values() if r.until > now]
        waits.append(self._look_at(self._left, self._resync_s) - now)
        if self._unfinished:
            waits.append(UNFINISHED_S)
        if self._waits_to_shrink:
            waits.append(self._grown_at + SHRINK_S - now)
        if self._has_called:
            waits.append(self._changed_at + plan_after_s(self._left) - now)
        return max(min(waits), 1.0)

    @property
    def _changed_at(self) -> float:
        """When it became known what the pool has: by a look, or by EC2's answers."""
        return max(self._observed_at, self._called_at)

    def _look_at(self, left: Left, resync_s: float) -> float:
        """Return when the next observation is due."""
        by_look = self._observed_at + observe_after_s(replace(left, behind=False), resync_s)
        return min(by_look, self._changed_at + observe_after_s(left, resync_s))

    def _recall(
        self, inputs: Inputs, metadata: Witness
    ) -> tuple[Inputs, Cloud, frozenset[IpNetwork]] | None:
        """Return the last observation in place of a new one, if that is good enough; None if not.

        It is if metadata shows the same, so that there are two witnesses, and addresses come or
        go, but no ENI: if one cannot take or give them, EC2 refuses, and then it is looked at.
        """
        if self._cloud is None or self._failed or self.is_unconfirmed:
            return None
        cloud = arrived(self._cloud, inputs.links)
        resync_s = inputs.document.reconcile.ec2_resync.total_seconds()
        left = replace(self._left, changing=_may_change(cloud, inputs.links))
        if held_by_mac(cloud) != metadata or self.clock() >= self._look_at(left, resync_s):
            return None
        records = self.state.observe()
        inputs = self._completed(inputs, records, cloud.enis)
        inputs, picks = self._pick(inputs, cloud)
        plan = eni.plan(eni.desire(inputs), cloud)
        if not all(isinstance(action, SIMPLE) for action in plan.actions):
            return None
        self.ec2.suppose(cloud)
        return inputs, cloud, picks

    def _remember(self, inputs: Inputs, before: Cloud, outcome: Outcome) -> None:
        """Keep what a look has shown and the calls have changed, and what they have left open."""
        cloud: Cloud = outcome.observed
        desired = replace(outcome.desired, backoffs=self.backoffs)
        plan = eni.plan(desired, cloud)  # what has just failed is in backoff
        self._expected = items(cloud.enis) | self.disagreements.missing.keys()
        # What metadata does not show yet of our own calls is no news.
        self._differing |= held_by_mac(cloud) ^ held_by_mac(before)
        changing = _may_change(cloud, inputs.links)
        unfinished = bool(plan.actions)
        self._has_called = bool(outcome.plan.actions)
        if self._has_called:
            self._called_at, self.readings = self.clock(), 0
        if any(
            isinstance(a, AddEni | AssignAddresses | AssignPrefixes) for a in outcome.plan.actions
        ):
            self._grown_at = self.clock()
        again = changing or unfinished or self._has_called
        oldest = self.clock() - 2 * CONFIRM_S
        self._left = Left(
            unfinished=unfinished,
            changing=changing,
            times=self._left.times + 1 if again else 0,
            behind=cloud.behind,
            late=self._left.late,
            missing=any(since > oldest for since in self.disagreements.missing.values()),
            disagreeing=bool(self.disagreements),
            **_lack(desired, plan),
        )
        self._unfinished = bool(inputs.ec2.quarantined) or any(
            e.owned and e.device_index is None for e in cloud.enis
        )
        self._cloud = cloud
        self._resync_s = inputs.document.reconcile.ec2_resync.total_seconds()

    def _look(
        self, inputs: Inputs, metadata: Witness
    ) -> tuple[Inputs, Cloud, frozenset[IpNetwork]]:
        """One look at everything that counts, and what it says should be given back."""
        records = self.state.observe()
        inputs = self._completed(inputs, records)
        try:
            with boundary("observe of eni"):
                cloud = arrived(self.ec2.observe([eni.desire(inputs)]), inputs.links)
        except ReconcilerError as error:
            raise _UnreadableError(error) from error
        self._left = replace(self._left, late=cloud.behind)
        self._weigh(records, cloud, metadata)
        self._differing = held_by_mac(cloud) ^ (metadata or frozenset())
        inputs = self._completed(inputs, records, cloud.enis)
        inputs, picks = self._pick(inputs, cloud)
        return inputs, cloud, picks

    def _pick(self, inputs: Inputs, cloud: Cloud) -> tuple[Inputs, frozenset[IpNetwork]]:
        """Choose what should be given back; the inputs then say what conntrack has of it."""
        picks = eni.quarantine(eni.desire(inputs), cloud)
        fresh = picks - inputs.ec2.quarantined
        # Of a prefix that nobody can spell out, ``used`` alone says what is used.
        doomed = frozenset(a for n in fresh if family_of(n).counted for a in n)
        if doomed and (flows := self._find_flows(doomed)):
            inputs = replace(inputs, ec2=replace(inputs.ec2, used=inputs.ec2.used | flows))
            picks = eni.quarantine(eni.desire(inputs), cloud)
        if inputs.predecessor.unread:
            picks = frozenset()  # a pod of the stock plugin's may use any of them
        calm = picks & inputs.ec2.quarantined
        self._waits_to_shrink = picks != calm and self.clock() < self._grown_at + SHRINK_S
        if self._waits_to_shrink:
            picks = calm
        return inputs, picks

    def _completed(self, inputs: Inputs, records: Records, enis: Iterable[Eni] = ()) -> Inputs:
        """Add to the inputs what only the pool's planner looks at."""
        used = {c.address for c in records.cooling}
        used |= {a for bound in records.attachments for a in bound.addresses}
        used |= records.withheld(self.now())
        routed = self.netlink.pod_addresses()
        used |= {a for held in routed.values() for a in held}
        elsewhere = inputs.predecessor.held
        bound = used
        # Those on ENIs that are not ours are neither held by us nor asked of us.
        ours = {a for e in enis if e.serves_pods for a in e.pod_addresses}
        demand = records.demand
        # What the host takes for its own serves no pod, and somebody uses it.
        occupied = {a for a in ours - bound if any(a in n for n in inputs.occupied)}
        used |= occupied
        if any(len(held) > MAX_POD_ADDRESSES for held in routed.values()):
            # Somebody adds routes without end, so any may be in use: none is given back.
            used |= ours | {n.network_address for e in enis for n in e.ipv6_prefixes}
        demand = replace(demand, assigned=demand.assigned + len(elsewhere & ours | occupied))
        ec2 = replace(
            inputs.ec2,
            used=frozenset(used | elsewhere),
            quarantined=frozenset(q.network for q in records.quarantined),
            maybe_released=frozenset(
                q.network for q in records.quarantined if q.is_pending(self.now())
            ),
            creations=records.creations,
            disagreements=self.disagreements,
            backoffs=self.backoffs,
            nonce=self.nonce(),
        )
        return replace(
            inputs,
            now=self.now(),
            clock=self.clock(),
            attachments=records.attachments,
            demand=demand,
            ec2=ec2,
        )

    def _weigh(self, records: Records, cloud: Cloud, metadata: Witness) -> None:
        shown = items(cloud.enis)
        macs = {**self._macs, **{e.mac: e.eni_id for e in cloud.enis}}
        confirmed = frozenset((macs[mac], n) for mac, n in metadata or () if mac in macs)
        released = {q.network for q in records.quarantined}
        known = self._expected | self.disagreements.missing.keys()
        expected = {i for i in known if i[1] not in released}
        bound = [
            (a.eni_id, own) for a in records.attachments if a.eni_id for own in a.vpc_addresses
        ]
        expected |= {_item(eni_id, address, shown | known) for eni_id, address in bound}
        holders = {eni_id for eni_id, _ in expected}
        self._macs = {mac: eni_id for mac, eni_id in macs.items() if eni_id in holders}
        # What an ENI holds that cannot be read is not known, so none of it is lost; nor is
        # anything while there is no second witness.
        unread = {u.name for u in cloud.unread_enis}
        everything = metadata is None or "" in unread
        kept = frozenset(i for i in expected if everything or i[0] in unread)
        self.disagreements = weigh(
            self.disagreements,
            expected=frozenset(expected),
            shown=shown,
            metadata=confirmed,
            now=self.clock(),
            unread=kept,
        )

    def _book(self, picks: frozenset[IpNetwork], cloud: Cloud) -> Records:
        """Record what is to be given back and what became of creations; return all records."""
        wanted = self._wanted(picks, cloud)
        with self.binding:
            outcomes = converge(
                [
                    Domain("quarantine", lambda _: wanted, quarantine.plan, self.state),
                    self._creations(cloud),
                ],
                None,
            )
        self._errors += tuple(e for o in outcomes.values() for e in o.errors)
        observed = outcomes["quarantine"].observed
        return observed if isinstance(observed, Records) else self.state.observe()

    def _write_down(self, cloud: Cloud, actions: Sequence[Any]) -> tuple[ApplyError, ...]:
        """Record what EC2 is about to be asked to take back; return what must not be asked."""
        networks = {str(a): eni.given_back(a, cloud) for a in actions}
        asked = frozenset[IpNetwork]().union(*networks.values())
        if not asked:
            return ()
        plan = quarantine.ask(asked, self.state.observe(), self.now())
        failures = self.state.apply(plan.actions)
        if not failures:
            return ()
        why = f"EC2 is not asked before this is recorded: {failures[0]}"
        return tuple(
            ApplyError(name, failures[0].reason, why) for name, given in networks.items() if given
        )

    def _wanted(self, picks: frozenset[IpNetwork], cloud: Cloud) -> quarantine.Wanted:
        held = frozenset(n for _, n in items(cloud.enis))
        return quarantine.Wanted(picks, held, self.now())

    def _creations(self, cloud: Cloud) -> Domain:
        seen = creation.Seen(frozenset(e.creation for e in cloud.enis if e.creation), self.now())
        return Domain("creation", lambda _: seen, creation.plan, self.state)

    def _find_flows(self, addresses: frozenset[IpAddress]) -> frozenset[IpAddress]:
        """Return those that conntrack has connections of; if it cannot be read, all may have."""
        try:
            with boundary("observe of conntrack"):
                flows = self.conntrack.observe([ConntrackFlush(addresses)])
                return frozenset(flow.address for flow in flows)
        except ReconcilerError as error:
            self._errors += (error,)
            return addresses

    def _take_note(self) -> None:
        """Start the backoff of what failed; forget the failures of what succeeded."""
        failures, successes = self.ec2.drain()
        for call in successes:
            self.backoffs = self.backoffs.after_success(call)
        for f in failures:
            self.backoffs = self.backoffs.after_failure(
                f.scope, f.code, f.message, now=self.clock(), chance=self.chance()
            )


class _UnreadableError(Exception):
    """EC2 could not be read; the error is the outcome of the pass."""

    def __init__(self, cause: ReconcilerError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class AnsweredEc2(ObservedTarget):
    """EC2 after a look: what it answers to the calls that follow needs no look of its own."""

    def __init__(
        self, ec2: Any, seen: Cloud, before: Callable[[Sequence[Any]], tuple[ApplyError, ...]]
    ) -> None:
        super().__init__(ec2, seen, before)
        self._is_told = False

    def observe(self, desired: Iterable[Any]) -> Any:
        """Return what was seen; after calls, what their answers have made of it."""
        return self._target.told() if self._is_told else super().observe(desired)

    def apply(self, actions: Sequence[Any]) -> tuple[ApplyError, ...]:
        """Hand on what may be done."""
        failures = super().apply(actions)
        # Of a call that EC2 refused outright it is known that nothing has happened.
        self._is_told = all(_kind(failure) in REFUSED for failure in failures)
        return failures


SIMPLE = AssignAddresses | AssignPrefixes | ReleaseAddresses | ReleasePrefixes
"""What EC2 may be asked for on an earlier observation: metadata shows each address."""

REFUSED = {Failure.DENIED, Failure.THROTTLED, Failure.EXHAUSTED}
"""Kinds of failures after which a look would show nothing new: the call has had no effect, and
not because what it names is other than was believed."""


def _kind(error: ReconcilerError) -> Failure | None:
    return classify(error.reason) if isinstance(error, ApplyError) else None


def _may_change(cloud: Cloud, macs: Container[str]) -> bool:
    """Whether the next observation may show more by itself, or what could not be read now."""
    return cloud.primary is None or bool(cloud.unread) or is_changing(cloud, macs)


def _lack(desired: Pool, plan: Plan) -> dict[str, bool]:
    """Say whether room in a subnet is what the pool waits for."""
    short = any(r.reason in {"SubnetExhausted", "SubnetRejected"} for r in plan.refusals)
    return {"short": short, "waiting": desired.demand.waiting > 0}


def _item(eni_id: str, address: IpAddress, known: Iterable[Item]) -> Item:
    """Return the unit a bound address belongs to: a known prefix, or itself."""
    for holder, network in known:
        if holder == eni_id and address in network:
            return holder, network
    return eni_id, unit_of(address)
