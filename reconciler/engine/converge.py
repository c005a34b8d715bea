"""Rounds: desire, observe, plan, apply, observe again. Knows no domain and no library.

Domains that share a target are planned on one observation and applied in one go, so that a
target with transactions gets one and a pod's namespace is entered once. A domain whose desire is
not ready, or a target that cannot be read, fails alone. Each call of a domain or a
target is a boundary: whatever it raises fails that domain, or the domains of that target, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from reconciler.engine.issue import Issue
from reconciler.engine.observed import cut_kinds, readable, why_unread
from reconciler.engine.plan import Action, Plan, merge
from reconciler.errors import ApplyError, PodError, ReconcilerError, boundary

MAX_ROUNDS = 4
"""Rounds until a target must hold what is desired: one to apply, one to observe, and two for
changes that the kernel makes in response (a link going up, a flag being normalised)."""


class Target(Protocol):
    """Observes and applies the objects of one or more domains."""

    def observe(self, desired: Iterable[Any]) -> Any:
        """Read the host.

        Args:
            desired: by the target's domains: at least these objects are looked for. Objects that
                are neither desired nor ours may be left out.

        Returns:
            What is there. An ``Observed`` names the kinds and pods' namespaces that could not be
            read: the domains of those kinds fail, objects desired in those namespaces are not
            planned, and everything else goes on.

        Raises:
            ObserveError: it could not be read; a guess is never returned.
        """
        ...

    def apply(self, actions: Sequence[Any]) -> tuple[ApplyError, ...]:
        """Carry out actions in order, idempotently; return what failed."""
        ...


@dataclass(frozen=True, slots=True)
class Domain:
    """One concern: its pure half, and the target it shares with others.

    Attributes:
        desire: inputs to desired state; may raise NotReadyError.
        plan: desired and observed state to a plan.
        kinds: of the target's objects that are this domain's; all, if none are named.
        atomic: its actions are applied together or not at all.
    """

    name: str
    desire: Callable[[Any], Any]
    plan: Callable[[Any, Any], Plan]
    target: Target
    kinds: tuple[type, ...] = ()
    atomic: bool = False

    def sift(self, observed: Any, desired: Any, others: frozenset[Any]) -> Any:
        """Return what of an observation this domain plans on.

        Args:
            observed: what the target shows.
            desired: by this domain.
            others: what is observed, and desired by no domain of the target.
        """
        if not self.kinds:
            return observed
        # Not "all of these kinds": that would be asked, and hashed, for thousands each time.
        return (desired & observed).union(o for o in others if isinstance(o, self.kinds))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one domain.

    Attributes:
        desired: as computed; None if that failed.
        observed: the target's last observation, shared by all its domains.
        plan: of the first observation.
        remaining: of the last observation.
        reverted: actions that were applied last, without an error, and are planned again.
        errors: of the last round.
    """

    desired: Any = None
    observed: Any = None
    plan: Plan = field(default_factory=Plan)
    remaining: Plan = field(default_factory=Plan)
    reverted: tuple[Action, ...] = ()
    errors: tuple[ReconcilerError, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether the last observation shows what is desired."""
        return not self.remaining.actions and not self.remaining.deferred and not self.errors

    @property
    def failed(self) -> bool:
        """Whether an error concerns more than single pods."""
        return any(not isinstance(e, PodError) for e in self.errors)


Outcomes = dict[str, Outcome]

Hold = Callable[[Domain, Plan], tuple[Plan, tuple[ApplyError, ...]]]
"""Defers the actions of a domain's plan that are in backoff, and says why."""


def hold_nothing(domain: Domain, plan: Plan) -> tuple[Plan, tuple[ApplyError, ...]]:
    """Defer nothing."""
    del domain
    return plan, ()


def dry_run(domains: Sequence[Domain], inputs: Any) -> Outcomes:
    """Plan every domain; apply nothing."""
    return _by_each_target(
        domains, lambda target, group: _look(target, _Desires.of(group, inputs))[0]
    )


def converge(
    domains: Sequence[Domain],
    inputs: Any,
    *,
    max_rounds: int = MAX_ROUNDS,
    hold: Hold = hold_nothing,
) -> Outcomes:
    """Run rounds over each target until nothing is left to do or a round changes nothing."""
    return _by_each_target(
        domains,
        lambda target, group: _converge_target(target, group, inputs, max_rounds, hold),
    )


def _by_each_target(
    domains: Sequence[Domain], do: Callable[[Target, Sequence[Domain]], Outcomes]
) -> Outcomes:
    """Call ``do`` for each target and its domains; the domains of one target may fail alone."""
    outcomes: Outcomes = {}
    for target, group in _by_target(domains):
        try:
            with boundary(f"round of {_names(group)}"):
                outcomes |= do(target, group)
        except ReconcilerError as error:
            outcomes |= {d.name: Outcome(errors=(error,)) for d in group}
    return outcomes


def _converge_target(
    target: Target, domains: Sequence[Domain], inputs: Any, max_rounds: int, hold: Hold
) -> Outcomes:
    desires = _Desires.of(domains, inputs)
    first, merged = _look(target, desires, hold)
    latest = first
    failures: tuple[ApplyError, ...] = ()
    applied: tuple[Action, ...] = ()
    whole: tuple[ReconcilerError, ...] = ()
    for _ in range(max_rounds):
        if not merged.actions:
            break
        before = applied = merged.actions
        try:
            whole = ()
            with boundary(f"apply of {_names(domains)}"):
                failures = target.apply(merged.actions)
        except ReconcilerError as error:
            # The next observation shows how far it came.
            failures, applied, whole = (), (), (error,)
        latest, merged = _look(target, desires, hold)
        if merged.actions == before or any(cut_kinds(o.observed) for o in latest.values()):
            # The same again: another round cannot help, a later pass may. Or there is more than
            # one observation shows: later passes do the rest, and pods are served in between.
            break
    return {
        name: Outcome(
            desired=latest[name].desired,
            observed=latest[name].observed,
            plan=first[name].plan,
            remaining=latest[name].plan,
            reverted=_reverted(latest[name].plan, applied, failures),
            errors=latest[name].errors
            + _failures_of(latest[name].plan, failures)
            + (whole if first[name].plan.actions or latest[name].plan.actions else ()),
        )
        for name in first
    }


@dataclass(frozen=True, slots=True)
class _Desires:
    """What the domains of one target desire. The same inputs desire the same in every round.

    Attributes:
        wanted: each domain that could say, and what.
        failed: the others.
        objects: all of it that is objects.
        values: what is not.
    """

    wanted: Sequence[tuple[Domain, Any]]
    failed: Outcomes
    objects: frozenset[Any]
    values: Sequence[Any]

    @classmethod
    def of(cls, domains: Sequence[Domain], inputs: Any) -> _Desires:
        wanted: list[tuple[Domain, Any]] = []
        failed: Outcomes = {}
        for domain in domains:
            try:
                with boundary(f"desire of {domain.name}"):
                    wanted.append((domain, domain.desire(inputs)))
            except ReconcilerError as error:
                failed[domain.name] = Outcome(errors=(error,))
        sets = [d for _, d in wanted if isinstance(d, frozenset)]
        values = [d for _, d in wanted if not isinstance(d, frozenset)]
        return cls(wanted, failed, frozenset().union(*sets), values)


def _look(target: Target, desires: _Desires, hold: Hold = hold_nothing) -> tuple[Outcomes, Plan]:
    """One observe and plan over the domains of one target."""
    outcomes = dict(desires.failed)
    if not desires.wanted:
        return outcomes, Plan()
    domains = [domain for domain, _ in desires.wanted]
    try:
        with boundary(f"observe of {_names(domains)}"):
            observed = target.observe([*desires.objects, *desires.values])
    except ReconcilerError as error:
        return {d.name: Outcome(errors=(error,)) for d in domains} | outcomes, Plan()
    plans: dict[str, Plan] = {}
    others = observed - desires.objects if isinstance(observed, frozenset) else frozenset()
    for domain, desired in desires.wanted:
        if unread := why_unread(observed, domain.kinds):
            outcomes[domain.name] = Outcome(errors=(unread,))
            continue
        want = readable(desired, observed)
        try:
            with boundary(f"plan of {domain.name}"):
                plan, errors = hold(domain, domain.plan(want, domain.sift(observed, want, others)))
        except ReconcilerError as error:
            outcomes[domain.name] = Outcome(want, observed, errors=(error,))
            continue
        plan += Plan(refusals=tuple(_name_cut(domain, observed)))
        plans[domain.name] = plan
        outcomes[domain.name] = Outcome(want, observed, plan, plan, errors=errors)
    return outcomes, merge(plans)


def _name_cut(domain: Domain, observed: Any) -> Iterator[Issue]:
    """Name the kinds of a domain's objects of which the observation has not shown all."""
    for kind, text in cut_kinds(observed).items():
        if kind in domain.kinds:
            yield Issue(f"{domain.name}s", "TooMany", text)


def _names(domains: Sequence[Domain]) -> str:
    return ", ".join(d.name for d in domains)


def _failures_of(remaining: Plan, failures: Iterable[ApplyError]) -> tuple[ApplyError, ...]:
    """Keep the failures whose action is still wanted.

    The others healed by the next observation.
    """
    wanted = {str(action) for action in remaining.actions}
    return tuple(f for f in failures if f.action in wanted)


def _reverted(
    remaining: Plan, applied: Iterable[Action], failures: Iterable[ApplyError]
) -> tuple[Action, ...]:
    """Name the actions that succeeded and were reverted before the next observation."""
    failed = {f.action for f in failures}
    # By their objects: what reverts them may leave something else there each time.
    wanted = {(a.kind, a.key) for a in remaining.actions}
    return tuple(a for a in applied if (a.kind, a.key) in wanted and str(a) not in failed)


def _by_target(domains: Sequence[Domain]) -> list[tuple[Target, list[Domain]]]:
    """Group neighbours that share a target; the given order is kept."""
    return [
        (group[0].target, group)
        for _, members in groupby(domains, key=lambda d: id(d.target))
        if (group := list(members))
    ]


def actions_of(outcomes: Mapping[str, Outcome]) -> list[tuple[str, Action]]:
    """List (domain, action) of the first plans, in order."""
    return [(name, action) for name, o in outcomes.items() for action in o.plan.actions]
