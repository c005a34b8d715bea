"""Rounds: desire, observe, plan, apply, observe again. Knows no domain and no library.

Domains that share a target are planned on one observation and applied in one go, so that a
target with transactions gets one and a pod's namespace is entered once. A domain whose desire is
not ready, or a target that cannot be read, fails alone. Each call of a domain or a
target is a boundary: whatever it raises fails that domain, or the domains of that target, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from reconciler.engine.plan import Action, Change, Keyed, Plan, merge
from reconciler.errors import (
    ApplyError,
    Issue,
    NamespaceError,
    ObserveError,
    PodError,
    ReconcilerError,
    boundary,
)

MAX_ROUNDS = 4
"""Rounds until a target must hold what is desired: one to apply, one to observe, and two for
changes that the kernel makes in response (a link going up, a flag being normalised)."""


class Observed(frozenset[Keyed]):
    """Objects that were seen, and what could not be read.

    A failed observation is never an empty one. Often only one pod's namespace or one table of the
    kernel cannot be read; everything else is still reconciled.
    """

    # classes of objects that could not be read at all, and why
    unread_kinds: Mapping[type, ObserveError]
    # pods' namespaces that could not be read, by identity, and why
    unread_places: Mapping[str, NamespaceError]
    # classes of objects of which some were left out, and which. Desired objects are never left
    # out.
    cut_kinds: Mapping[type[Keyed], str]

    def __new__(
        cls,
        objects: Iterable[Keyed] = (),
        *,
        unread_kinds: Mapping[type, ObserveError] | None = None,
        unread_places: Mapping[str, NamespaceError] | None = None,
        cut_kinds: Mapping[type[Keyed], str] | None = None,
    ) -> Observed:
        made = super().__new__(cls, objects)
        made.unread_kinds = unread_kinds or {}
        made.unread_places = unread_places or {}
        made.cut_kinds = cut_kinds or {}
        return made

    def with_these(self, others: Iterable[Keyed]) -> Observed:
        """Return the union, of what could not be read too."""
        more = gaps(others)
        return Observed(
            self.union(others),
            unread_kinds={**self.unread_kinds, **more.unread_kinds},
            unread_places={**self.unread_places, **more.unread_places},
            cut_kinds={**self.cut_kinds, **more.cut_kinds},
        )


_WHOLE = Observed()


def gaps(observed: object) -> Observed:
    """Return what says which parts of an observation are missing: of most targets none."""
    return observed if isinstance(observed, Observed) else _WHOLE


I = TypeVar("I")  # noqa: E741 - what planning starts from
I_contra = TypeVar("I_contra", contravariant=True)
D = TypeVar("D")  # what a domain desires, if that is one value
O = TypeVar("O", bound=Keyed)  # noqa: E741 - the objects of a domain that desires a set of them
S = TypeVar("S")  # what it plans on
D_contra = TypeVar("D_contra", contravariant=True)
S_co = TypeVar("S_co", covariant=True)
A_contra = TypeVar("A_contra", contravariant=True)


class Target(Protocol[D_contra, S_co, A_contra]):
    """Observes and applies the objects of one or more domains.

    It is asked for what its domains desire, shows what they plan on, and takes their actions.
    """

    def observe(self, desired: Iterable[D_contra], /) -> S_co:
        """Read at least what is desired; what is neither desired nor ours may be left out.

        An ``Observed`` names the kinds and pods' namespaces that could not be read: the domains of
        those kinds fail, objects desired in those namespaces are not planned, and everything else
        goes on. If it could not be read an ``ObserveError`` is raised; a guess is never returned.
        """

    def apply(self, actions: Sequence[A_contra], /) -> tuple[ApplyError, ...]:
        """Carry out actions in order, idempotently; return what failed."""


ObjectTarget = Target[O, frozenset[O], Change[O]]
"""One that shows objects of the kinds that it is asked for, and of no other."""


@dataclass(frozen=True, slots=True)
class Domain(Generic[I_contra]):
    """One concern: its pure half, and the target it shares with others.

    Where one is made, ``__init__`` has its parts checked against each other: that it plans on what
    it desires, and on what its target shows. Rounds hand both back to it without a look into
    either: hence ``Any``. Whether its target takes what it desires is not checked: mypy infers no
    argument from a contravariant one and from another at once.
    """

    name: str
    # inputs to desired state; may raise NotReadyError
    desire: Callable[[I_contra], object]
    plan: Callable[[Any, Any], Plan]  # desired and observed state to a plan
    target: Target[Any, object, Any]
    # of the target's objects that are this domain's; all, if none are named
    kinds: tuple[type, ...] = ()
    atomic: bool = False  # its actions are applied together or not at all

    if TYPE_CHECKING:

        @overload  # some kinds of a target's objects
        def __init__(
            self,
            name: str,
            desire: Callable[[I_contra], D],
            plan: Callable[[D, frozenset[S]], Plan],
            target: Target[Any, frozenset[object], Any],
            kinds: tuple[type[S], ...],
            atomic: bool = ...,
        ) -> None: ...

        @overload  # all that a target shows
        def __init__(
            self,
            name: str,
            desire: Callable[[I_contra], D],
            plan: Callable[[D, S], Plan],
            target: Target[Any, S, Any],
            *,
            atomic: bool = ...,
        ) -> None: ...

        def __init__(self, *parts: object, **options: object) -> None:
            """At run time it is the dataclass's own."""

    def objects(self, inputs: I_contra) -> frozenset[Keyed]:
        """Return the objects it desires; none if it desires one value."""
        desired = self.desire(inputs)
        return desired if isinstance(desired, frozenset) else frozenset()

    def sift(self, observed: object, desired: object, others: frozenset[object]) -> object:
        """Return what this domain plans on; ``others`` is observed, and desired by no domain."""
        if not self.kinds or not isinstance(observed, frozenset):
            return observed
        assert isinstance(desired, frozenset)
        # Not "all of these kinds": that would be asked, and hashed, for thousands each time.
        return (desired & observed).union(o for o in others if isinstance(o, self.kinds))


def always(desired: D) -> Callable[[object], D]:
    """Return a ``desire`` of one and the same, whatever planning starts from."""
    return lambda _: desired


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one domain."""

    desired: object = None  # as computed; None if that failed
    observed: object = None  # the target's last observation, shared by all its domains
    # of the first observation, and the actions that only later rounds had to carry out
    plan: Plan = field(default_factory=Plan)
    remaining: Plan = field(default_factory=Plan)  # of the last observation
    # actions that were applied last, without an error, and are planned again
    reverted: tuple[Action, ...] = ()
    errors: tuple[ReconcilerError, ...] = ()  # of the last round

    @property
    def undone(self) -> tuple[Action, ...]:
        """What is left to do, now or later."""
        return (*self.remaining.actions, *self.remaining.deferred, *self.remaining.begun)

    @property
    def settled(self) -> bool:
        """Whether the last observation shows what is desired."""
        return not self.undone and not self.errors

    @property
    def is_under_way(self) -> bool:
        """Whether nothing is left to do but to wait for what was begun."""
        left = self.remaining
        return bool(left.begun) and not (left.actions or left.deferred or self.errors)

    @property
    def failed(self) -> bool:
        """Whether an error concerns more than single pods."""
        return any(not isinstance(e, PodError) for e in self.errors)


Outcomes = dict[str, Outcome]

Hold = Callable[[Domain[Any], Plan], tuple[Plan, tuple[ApplyError, ...]]]
"""Defers the actions of a domain's plan that are in backoff, and says why."""


def hold_nothing(_: Domain[Any], plan: Plan) -> tuple[Plan, tuple[ApplyError, ...]]:
    """Defer nothing."""
    return plan, ()


def dry_run(domains: Sequence[Domain[I]], inputs: I) -> Outcomes:
    """Plan every domain; apply nothing."""
    return _by_each_target(domains, lambda group: _look(_Desires(group, inputs), hold_nothing)[0])


def converge(
    domains: Sequence[Domain[I]],
    inputs: I,
    *,
    max_rounds: int = MAX_ROUNDS,
    hold: Hold = hold_nothing,
) -> Outcomes:
    """Run rounds over each target until nothing is left to do or a round changes nothing."""
    return _by_each_target(
        domains, lambda group: _converge_target(group, inputs, max_rounds, hold)
    )


def _by_each_target(
    domains: Sequence[Domain[I]], do: Callable[[Sequence[Domain[I]]], Outcomes]
) -> Outcomes:
    """Call ``do`` for the neighbours that share a target; those of one target may fail alone."""
    outcomes: Outcomes = {}
    for _, members in groupby(domains, key=lambda d: id(d.target)):
        group = list(members)
        try:
            with boundary(f"round of {_names(group)}"):
                outcomes |= do(group)
        except ReconcilerError as error:
            outcomes |= {d.name: Outcome(errors=(error,)) for d in group}
    return outcomes


def _converge_target(
    domains: Sequence[Domain[I]], inputs: I, max_rounds: int, hold: Hold
) -> Outcomes:
    desires = _Desires(domains, inputs)
    first, merged = _look(desires, hold)
    latest, plans = first, {name: o.plan for name, o in first.items()}
    failures: tuple[ApplyError, ...] = ()
    applied: tuple[Action, ...] = ()
    whole: tuple[ReconcilerError, ...] = ()
    for _ in range(max_rounds):
        if not merged.actions:
            break
        if latest is not first:
            plans = {name: _and_later(plan, latest[name].plan) for name, plan in plans.items()}
        before = applied = merged.actions
        try:
            whole = ()
            with boundary(f"apply of {_names(domains)}"):
                failures = domains[0].target.apply(merged.actions)
        except ReconcilerError as error:
            # The next observation shows how far it came.
            failures, applied, whole = (), (), (error,)
        latest, merged = _look(desires, hold)
        if merged.actions == before or any(gaps(o.observed).cut_kinds for o in latest.values()):
            # The same again: another round cannot help, a later pass may. Or there is more than
            # one observation shows: later passes do the rest, and pods are served in between.
            break
    return {
        name: replace(
            last := latest[name],
            plan=plans[name],
            reverted=_reverted(last.plan, applied, failures),
            errors=last.errors
            + _failures_of(last.plan, failures)
            + (whole if plans[name].actions or last.plan.actions else ()),
        )
        for name in first
    }


def _and_later(plan: Plan, later: Plan) -> Plan:
    """Add the actions of a later round on other objects."""
    known = {(a.kind, a.key) for a in plan.actions}
    return plan + Plan(tuple(a for a in later.actions if (a.kind, a.key) not in known))


class _Desires(Generic[I]):
    """What the domains of one target desire. The same inputs desire the same in every round."""

    def __init__(self, domains: Sequence[Domain[I]], inputs: I) -> None:
        self.wanted: list[tuple[Domain[I], object]] = []
        self.failed: Outcomes = {}
        for domain in domains:
            try:
                with boundary(f"desire of {domain.name}"):
                    self.wanted.append((domain, domain.desire(inputs)))
            except ReconcilerError as error:
                self.failed[domain.name] = Outcome(errors=(error,))
        sets = [d for _, d in self.wanted if isinstance(d, frozenset)]
        self.objects: frozenset[object] = frozenset().union(*sets)
        self.values = [d for _, d in self.wanted if not isinstance(d, frozenset)]


def _look(desires: _Desires[I], hold: Hold) -> tuple[Outcomes, Plan]:
    """One observe and plan over the domains of one target."""
    outcomes = dict(desires.failed)
    if not desires.wanted:
        return outcomes, Plan()
    domains = [domain for domain, _ in desires.wanted]
    try:
        with boundary(f"observe of {_names(domains)}"):
            observed = domains[0].target.observe([*desires.objects, *desires.values])
    except ReconcilerError as error:
        return {d.name: Outcome(errors=(error,)) for d in domains} | outcomes, Plan()
    plans: dict[str, Plan] = {}
    others = observed - desires.objects if isinstance(observed, frozenset) else frozenset()
    missing = gaps(observed)
    for domain, desired in desires.wanted:
        if unread := [e for kind, e in missing.unread_kinds.items() if kind in domain.kinds]:
            outcomes[domain.name] = Outcome(errors=(unread[0],))
            continue
        want = desired
        if missing.unread_places and isinstance(desired, frozenset):
            places = missing.unread_places
            want = frozenset(o for o in desired if getattr(o, "netns", "") not in places)
        try:
            with boundary(f"plan of {domain.name}"):
                plan, errors = hold(domain, domain.plan(want, domain.sift(observed, want, others)))
        except ReconcilerError as error:
            outcomes[domain.name] = Outcome(want, observed, errors=(error,))
            continue
        cut = [text for kind, text in missing.cut_kinds.items() if kind in domain.kinds]
        if cut:
            plan += Plan(refusals=tuple(Issue(f"{domain.name}s", "TooMany", t) for t in cut))
        plans[domain.name] = plan
        outcomes[domain.name] = Outcome(want, observed, plan, plan, errors=errors)
    return outcomes, merge(plans)


def _names(domains: Sequence[Domain[I]]) -> str:
    return ", ".join(d.name for d in domains)


def _failures_of(remaining: Plan, failures: Iterable[ApplyError]) -> tuple[ApplyError, ...]:
    """Keep the failures whose action is still wanted; the next observation healed the others."""
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


def actions_of(outcomes: Mapping[str, Outcome]) -> list[tuple[str, Action]]:
    """List (domain, action) of what was planned, in order."""
    return [(name, action) for name, o in outcomes.items() for action in o.plan.actions]
