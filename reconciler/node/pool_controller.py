"""The pool controller: one pass over EC2, from the observation to the calls.

A change of demand is planned on the last observation first, which costs nothing; EC2 is observed
when something follows from it, or when an observation is due. What shall be given back is recorded
as quarantined first, under the lock that binding takes, so that no pod can get it meanwhile.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from reconciler.core.datapath import IpAddress, IpNetwork, family_of
from reconciler.domains import eni
from reconciler.domains.conntrack import ConntrackFlush
from reconciler.domains.inputs import Inputs
from reconciler.engine.converge import Domain, Outcome, always, converge
from reconciler.engine.plan import Action, Change, Plan
from reconciler.errors import ApplyError, ReconcilerError, boundary
from reconciler.ipam import ec2_action, pool_groups, pool_records, shortage
from reconciler.ipam.budget import Failure, classify
from reconciler.ipam.cloud import Cloud, arrived, from_metadata
from reconciler.ipam.ec2_action import Ec2Action
from reconciler.ipam.pace import Left, held_by_mac, is_changing
from reconciler.ipam.pool_status import Pool
from reconciler.ipam.records import Records
from reconciler.ipam.release import given_back, unit_networks
from reconciler.ipam.sources import CONFIRM_S, items
from reconciler.node.environment import Connections, Ec2Target, Metadata, State
from reconciler.node.gathering import Routed, complete
from reconciler.node.pool_schedule import PoolSchedule, Sources, Witness
from reconciler.targets.scoped import ScopedTarget, seen_first

Failures = tuple[ApplyError, ...]

REFUSED = {Failure.DENIED, Failure.THROTTLED, Failure.EXHAUSTED}
"""Kinds of failures after which a look would show nothing new: the call has had no effect, and
not because what it names is other than was believed."""


def kind_of(error: ReconcilerError) -> Failure | None:
    """Return what an answer of EC2 means; None if it is none."""
    return classify(error.reason) if isinstance(error, ApplyError) else None


def answered(
    ec2: Ec2Target, seen: Cloud, before: Callable[[Sequence[Ec2Action]], Failures]
) -> ScopedTarget[Pool, Cloud, Ec2Action]:
    """Return EC2 after the look ``seen``: its answers to the calls that follow need none.

    ``before`` is called with the actions first; what it refuses is not done.
    """
    look = seen_first(seen, ec2.observe)

    def apply(actions: Sequence[Ec2Action]) -> Failures:
        nonlocal look
        refused = before(actions)
        held = {failure.action for failure in refused}
        failures = (*refused, *ec2.apply([a for a in actions if str(a) not in held]))
        # Of a call that EC2 refused outright it is known that nothing has happened.
        is_known = all(kind_of(failure) in REFUSED for failure in failures)
        look = (lambda _: ec2.told()) if is_known else ec2.observe
        return failures

    return ScopedTarget(lambda desired: look(desired), apply)


@dataclass(frozen=True, slots=True)
class Given:
    """What a pass over the pool starts from; all of it is read once."""

    inputs: Inputs
    records: Records
    routed: Routed


@dataclass
class PoolController:
    """Keeps the pool of one node at its target."""

    state: State  # where records are; also the target of the quarantine and creation domains
    ec2: Ec2Target  # looks and calls
    imds: Metadata  # looks, where the document says that EC2 is not asked
    conntrack: Connections  # what else may hold an address
    # held while an address is bound, or withdrawn from binding
    binding: AbstractContextManager[object]
    schedule: PoolSchedule  # what is left for later
    sources: Sources  # what EC2 and metadata have shown
    now: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random
    nonce: Callable[[], str] = secrets.token_hex
    _errors: tuple[ReconcilerError, ...] = ()
    """Of the pass under way, beside those of EC2 itself."""
    _cloud: Cloud | None = None

    def run(self, given: Given, metadata: Witness, *, look: bool = True) -> Outcome:
        """Look at EC2, and bring the pool to its target.

        What EC2 answers to the calls is trusted, and metadata or a later observation must show it;
        only if one failed and may have had its effect EC2 is observed again.

        Without ``look`` the last observation does where metadata agrees with it and all that is
        planned is about addresses.

        Raises:
            ObserveError: the state directory could not be read.
        """
        self._errors, schedule = (), self.schedule
        try:
            recalled = None if look else self._recall(given, metadata)
            inputs, cloud, picks = recalled or self._look(given, metadata)
        except ReconcilerError as error:
            schedule.failed = True
            return Outcome(errors=(error,))
        if recalled is None:
            schedule.observed_at = schedule.clock()
        records = self._book(picks, cloud)
        inputs = self._completed(replace(given, inputs=inputs, records=records), cloud)
        target = answered(self.ec2, cloud, partial(self._write_down, cloud))
        domain = Domain("eni", eni.desire, eni.plan, target)
        outcome = converge([domain], inputs, max_rounds=1)["eni"]
        try:
            with boundary("taking note of EC2's answers"):
                self._take_note()
        except ReconcilerError as error:  # what was seen is seen
            self._errors += (error,)
        # Of less room than was believed the next observation tells more.
        desired, after = outcome.desired, outcome.observed
        schedule.failed = not isinstance(after, Cloud) or any(
            kind_of(error) is Failure.EXHAUSTED for error in outcome.errors
        )
        if isinstance(desired, Pool) and isinstance(after, Cloud):
            if added := _given(cloud, after, outcome.errors):
                with self.binding:
                    again = pool_records.plan_given_again(added, self.state.observe())
                    changes = [a for a in again.actions if isinstance(a, Change)]
                    self._errors += self.state.apply(changes)
            desired = replace(desired, ec2=replace(desired.ec2, backoffs=schedule.calls))
            self.sources.note_change(cloud, after)
            self._remember(inputs, desired, after, outcome.plan.actions)
            if outcome.plan.actions:
                converge([self._creations(after)], None)
        return replace(outcome, errors=(*self._errors, *outcome.errors))

    def foresee(self, given: Given) -> Outcome | None:
        """Plan on the last observation; None if EC2 must be observed: something follows."""
        self._errors = ()
        if self._cloud is None or (cloud := self._usable(self._cloud, given)) is None:
            return None
        inputs, picks = self._pick(self._completed(given, cloud), cloud)
        desired = eni.desire(inputs)
        plan = eni.plan(desired, cloud)
        wanted = _wanted(picks, cloud, self.now())
        if plan.actions or pool_records.plan_quarantines(wanted, given.records).actions:
            return None
        self.sources.note_change(self._cloud, cloud)
        schedule, changing = self.schedule, _may_change(cloud, inputs.links)
        schedule.leave(replace(schedule.left, changing=changing, **_lack(desired, plan)))
        schedule.unfinished = _is_unfinished(desired, cloud, plan)
        schedule.resync_s, schedule.has_called = _resync_s(inputs), False
        self._cloud = cloud
        return Outcome(desired, cloud, plan, plan, self._errors)

    def hear(self, metadata: Witness) -> bool:
        """Compare metadata with what is known of EC2; return whether it shows a change."""
        if self._cloud is None:
            return True
        has_news, same = self.sources.hear(self._cloud, metadata)
        if same and not self.schedule.left.late:
            # The second witness has it: no look is needed to show what EC2 has answered since.
            self.sources.confirm()
            self.schedule.leave(replace(self.schedule.left, disagreeing=False, behind=False))
            self._cloud = replace(self._cloud, behind=False)
        return has_news

    def rehearse(self, given: Given, metadata: Witness) -> Outcome:
        """Say what ``run`` would do, as if what it would quarantine were so already."""
        try:
            inputs, cloud, picks = self._look(given, metadata)
        except ReconcilerError as error:
            return Outcome(errors=(error,))
        quarantined = inputs.ec2.quarantined | picks
        desired = eni.desire(replace(inputs, ec2=replace(inputs.ec2, quarantined=quarantined)))
        plan = eni.plan(desired, cloud)
        return Outcome(desired, cloud, plan, plan)

    def _usable(self, last: Cloud, given: Given) -> Cloud | None:
        """Return the last observation as of now; None if it is too old."""
        cloud = arrived(last, given.inputs.links)
        left = replace(self.schedule.left, changing=_may_change(cloud, given.inputs.links))
        is_due = self.schedule.needs_observation(left, _resync_s(given.inputs))
        return None if is_due else cloud

    def _recall(
        self, given: Given, metadata: Witness
    ) -> tuple[Inputs, Cloud, frozenset[IpNetwork]] | None:
        """Return the last observation in place of a new one, if that is good enough; None if not.

        It is if metadata shows the same, so that there are two witnesses, and addresses come or
        go, but no ENI: if one cannot take or give them, EC2 refuses, and then it is looked at.
        """
        if self._cloud is None or self.schedule.is_unconfirmed:
            return None
        cloud = self._usable(self._cloud, given)
        if cloud is None or held_by_mac(cloud) != metadata:
            return None
        inputs, picks = self._pick(self._completed(given, cloud), cloud)
        plan = eni.plan(eni.desire(inputs), cloud)
        if not all(isinstance(action, SIMPLE) for action in plan.actions):
            return None
        self.ec2.suppose(cloud)
        return inputs, cloud, picks

    def _remember(
        self, inputs: Inputs, desired: Pool, cloud: Cloud, calls: Sequence[Action]
    ) -> None:
        """Keep what a look has shown and the calls have changed, and what they have left open."""
        schedule, sources = self.schedule, self.sources
        plan = eni.plan(desired, cloud)  # what has just failed is in backoff
        sources.expect(cloud)
        changing, unfinished = _may_change(cloud, inputs.links), bool(plan.actions)
        schedule.has_called = bool(calls)
        if calls:
            schedule.note_calls(grows=any(isinstance(a, GROWTH) for a in calls))
        oldest = schedule.clock() - 2 * CONFIRM_S
        schedule.leave(
            Left(
                unfinished=unfinished,
                changing=changing,
                times=schedule.left.times + 1 if changing or unfinished or calls else 0,
                behind=cloud.behind,
                late=schedule.left.late,
                missing=any(since > oldest for since in sources.disagreements.missing.values()),
                disagreeing=bool(sources.disagreements),
                **_lack(desired, plan),
            )
        )
        schedule.unfinished = _is_unfinished(desired, cloud, plan)
        schedule.resync_s = _resync_s(inputs)
        self._cloud = cloud

    def _look(self, given: Given, metadata: Witness) -> tuple[Inputs, Cloud, frozenset[IpNetwork]]:
        """One look at everything that counts, and what it says should be given back."""
        with boundary("observe of eni"):
            pool = eni.desire(self._completed(given))
            if pool.is_frozen:
                limits = pool.limits or (self._cloud.limits if self._cloud else None)
                seen = from_metadata(self.imds.enis(), given.inputs.enis, limits)
            else:
                seen = self.ec2.observe([pool])
            cloud = arrived(seen, given.inputs.links)
        self.sources.weigh(given.records, cloud, metadata)
        disagreeing = bool(self.sources.disagreements)
        self.schedule.leave(
            replace(self.schedule.left, late=cloud.behind, disagreeing=disagreeing)
        )
        inputs, picks = self._pick(self._completed(given, cloud), cloud)
        return inputs, cloud, picks

    def _pick(self, inputs: Inputs, cloud: Cloud) -> tuple[Inputs, frozenset[IpNetwork]]:
        """Choose what should be given back; the inputs then say what conntrack has of it."""
        picks = pool_groups.quarantine(eni.desire(inputs), cloud)
        fresh = picks - inputs.ec2.quarantined
        # Of a prefix whose addresses are never enumerated, ``used`` alone says what is used.
        doomed = frozenset(a for n in fresh if family_of(n).counted for a in n)
        if doomed and (flows := self._find_flows(doomed)):
            inputs = replace(inputs, ec2=replace(inputs.ec2, used=inputs.ec2.used | flows))
            picks = pool_groups.quarantine(eni.desire(inputs), cloud)
        if inputs.host.predecessor.unread:
            picks = frozenset()  # a pod of the stock plugin's may use any of them
        calm = picks & inputs.ec2.quarantined
        return inputs, calm if self.schedule.postpones_shrinking(wanted=picks != calm) else picks

    def _completed(self, given: Given, cloud: Cloud | None = None) -> Inputs:
        """Add to the inputs what only the pool's planner looks at."""
        ec2 = replace(
            given.inputs.ec2,
            disagreements=self.sources.disagreements,
            backoffs=self.schedule.calls,
            kept=self.sources.kept.at(self.schedule.clock()),
            nonce=self.nonce(),
        )
        inputs = replace(given.inputs, now=self.now(), clock=self.schedule.clock(), ec2=ec2)
        return complete(inputs, given.records, given.routed, cloud.enis if cloud else ())

    def _book(self, picks: frozenset[IpNetwork], cloud: Cloud) -> Records:
        """Record what is to be given back and what became of creations; return all records."""
        wanted = _wanted(picks, cloud, self.now())
        withdrawn = Domain("quarantine", always(wanted), pool_records.plan_quarantines, self.state)
        with self.binding:
            outcomes = converge([withdrawn, self._creations(cloud)], None)
        self._errors += tuple(e for o in outcomes.values() for e in o.errors)
        observed = outcomes["quarantine"].observed
        return observed if isinstance(observed, Records) else self.state.observe()

    def _write_down(self, cloud: Cloud, actions: Sequence[Ec2Action]) -> Failures:
        """Record what EC2 is about to be asked to take back; return what must not be asked."""
        networks = {str(a): given_back(a, cloud.enis) for a in actions}
        asked = frozenset[IpNetwork]().union(*networks.values())
        if not asked:
            return ()
        plan = pool_records.ask(asked, self.state.observe(), self.now())
        failures = self.state.apply([a for a in plan.actions if isinstance(a, Change)])
        if not failures:
            return ()
        why = f"EC2 is not asked before this is recorded: {failures[0]}"
        return tuple(
            ApplyError(name, failures[0].reason, why) for name, given in networks.items() if given
        )

    def _creations(self, cloud: Cloud) -> Domain[object]:
        seen = pool_records.Seen(
            frozenset(e.creation for e in cloud.enis if e.creation), self.now()
        )
        return Domain("creation", always(seen), pool_records.plan_creations, self.state)

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
        backoffs, now = self.schedule.calls, self.schedule.clock()
        for call in successes:
            backoffs = backoffs.after_success(call)
        for f in failures:
            backoffs = backoffs.after_failure(
                f.scope, f.code, f.message, now=now, chance=self.chance()
            )
        self.schedule.calls = backoffs


SIMPLE = (
    ec2_action.AssignAddresses
    | ec2_action.AssignPrefixes
    | ec2_action.ReleaseAddresses
    | ec2_action.ReleasePrefixes
)
"""What EC2 may be asked for on an earlier observation: metadata shows each address."""

GROWTH = ec2_action.AddEni | ec2_action.AssignAddresses | ec2_action.AssignPrefixes
"""What adds to the pool."""


def _wanted(picks: frozenset[IpNetwork], cloud: Cloud, now: float) -> pool_records.Wanted:
    return pool_records.Wanted(picks, frozenset(n for _, n in items(cloud.enis)), now)


def _given(before: Cloud, after: Cloud, errors: Iterable[ReconcilerError]) -> frozenset[IpNetwork]:
    """Return the units that EC2's answers say it has given; none if they are not known alone."""
    if not all(kind_of(error) in REFUSED for error in errors):
        return frozenset()  # what was observed then may be older than the answers
    # A new ENI's too, which serves no pod yet: later observations are no answers any more.
    held, shown = ({n for e in c.enis for n in unit_networks(e)} for c in (before, after))
    return frozenset(shown - held)


def _may_change(cloud: Cloud, macs: Container[str]) -> bool:
    """Whether the next observation may show more by itself, or what could not be read now."""
    return cloud.primary is None or bool(cloud.unread) or is_changing(cloud, macs)


def _resync_s(inputs: Inputs) -> float:
    return inputs.document.reconcile.ec2_resync.total_seconds()


def _is_unfinished(desired: Pool, cloud: Cloud, plan: Plan) -> bool:
    """Whether something waits for its time to go, or for what it is kept for to come."""
    loose = any(e.owned and e.device_index is None for e in cloud.enis)
    kept = any(r.reason == shortage.DEMAND_UNKNOWN for r in plan.refusals)
    return bool(desired.ec2.quarantined) or loose or kept


def _lack(desired: Pool, plan: Plan) -> dict[str, bool]:
    """Say whether room in a subnet is what the pool waits for."""
    short = any(r.reason in {"SubnetExhausted", "SubnetRejected"} for r in plan.refusals)
    return {"short": short, "waiting": desired.demand.waiting > 0}
