"""Backoff: how long to wait after failures, and which objects keep reverting or failing.

An action that the kernel refuses is retried after longer and longer waits. An object that another
program keeps reverting is an ownership fight: it is repaired less and less often, and reported.
Both concern one object as it is desired. A change of the object, or of the document, starts anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple

from reconciler.engine.plan import Action, Key, Plan
from reconciler.errors import ApplyError

MAX_DOUBLINGS = 16  # beyond it a wait no longer grows


class Delays(NamedTuple):
    """How long to wait after failures in a row, in seconds: doubled each time, up to the longest.

    ``jitter`` is which share of a wait is random, so that nodes do not go in step: 0 none, 1 all.
    """

    first: float
    longest: float = inf
    jitter: float = 0.0

    def after(self, failures: int, chance: float = 1.0) -> float:
        """Return the seconds to wait; ``chance`` is a random number from 0 to 1."""
        if failures < 1:
            return 0.0
        longest = min(self.first * 2.0 ** min(failures - 1, MAX_DOUBLINGS), self.longest)
        return longest * (1 - self.jitter * (1 - chance))


REPAIRS = 5
"""Repairs of one object within ``WINDOW_S`` that count as a fight. Reloading a firewall, or trying
things out by hand, takes fewer."""

WINDOW_S = 60.0

BACKOFF_S = Delays(1.0, 30.0, jitter=0.5)
"""Of one object. Pods may need what another program breaks, so it is never left broken for long.
Repairs wait without jitter."""

MAX_KNOWN = 40_000
"""Objects that are remembered: twice what a document can have in our sets. A program that keeps
adding other objects to our table would otherwise make it a million within ``WINDOW_S``, of half a
KiB each. An object that is forgotten has no backoff."""

Identity = tuple[str, Key]  # an object's kind and key


@dataclass(frozen=True, slots=True)
class Backoff:
    """The recent repairs and failures of one object. Times are monotonic seconds."""

    object: object  # as desired; for a deletion, as observed
    repairs: tuple[float, ...] = ()  # the times of the last ones
    failures: int = 0  # in a row
    error: str = ""  # of the last attempt; "" if it succeeded
    waits: int = 0  # in a row, for repairs
    until: float = 0.0  # it is left alone until then
    # who else changed the kernel's networking around the last repair
    other_writers: tuple[str, ...] = ()

    @property
    def is_fight(self) -> bool:
        """Whether another program keeps reverting it."""
        return len(self.repairs) == REPAIRS and self.repairs[-1] - self.repairs[0] <= WINDOW_S

    def is_over(self, now: float) -> bool:
        """Whether its last repair or wait is longer ago than ``WINDOW_S``."""
        last = max((*self.repairs[-1:], self.until))
        return now - last > WINDOW_S


@dataclass(frozen=True, slots=True)
class Backoffs:
    """The backoff of each object that has one."""

    known: Mapping[Identity, Backoff] = field(default_factory=dict)

    def after_repairs(
        self, actions: Iterable[Action], now: float, other_writers: tuple[str, ...]
    ) -> Backoffs:
        """Note that drift of objects was repaired; ten thousand at once if a set was flushed."""
        changed: dict[Identity, Backoff] = {}
        for action in actions:
            before = self._of(action)
            after = replace(
                before,
                repairs=(*before.repairs, now)[-REPAIRS:],
                failures=0,
                error="",
                other_writers=other_writers or before.other_writers,
            )
            if after.is_fight:
                waits = before.waits + 1
                after = replace(after, waits=waits, until=now + BACKOFF_S.after(waits))
            changed[action.kind, action.key] = after
        return self._with(changed)

    def after_failures(
        self, failures: Iterable[tuple[Action, str]], now: float, chance: float
    ) -> Backoffs:
        """Note that actions failed, and what the kernel answered.

        Each is retried at once after its first failure.
        """
        changed: dict[Identity, Backoff] = {}
        for action, error in failures:
            before = self._of(action)
            backoff_s = BACKOFF_S.after(before.failures, chance)
            changed[action.kind, action.key] = replace(
                before,
                failures=before.failures + 1,
                error=error,
                until=max(before.until, now + backoff_s),
            )
        return self._with(changed)

    def after_success(self, actions: Iterable[Action]) -> Backoffs:
        """Forget the failures of actions that succeeded and repaired no drift."""
        done = {(a.kind, a.key) for a in actions} & self.known.keys()
        return self._only(lambda identity, s: identity not in done or bool(s.repairs))

    def asked_for(self, plans: Iterable[Plan]) -> Backoffs:
        """Forget the failures of objects that the plans of a full pass do not mention.

        Such an object is in its place, or no longer desired. A restarted container has the same
        link as before, which must not wait because of the first one.
        """
        asked = {(a.kind, a.key) for p in plans for a in (*p.actions, *p.deferred)}
        return self._only(lambda identity, s: identity in asked or bool(s.repairs))

    def since(self, now: float) -> Backoffs:
        """Forget what is over."""
        return self._only(lambda _, s: not s.is_over(now))

    def _only(self, keep: Callable[[Identity, Backoff], bool]) -> Backoffs:
        """Return the entries to keep; this object itself if all are."""
        kept = {k: s for k, s in self.known.items() if keep(k, s)}
        return Backoffs(kept) if len(kept) < len(self.known) else self

    def hold(self, plan: Plan, now: float, *, atomic: bool) -> Plan:
        """Defer the actions that are in backoff; all together if the plan is ``atomic``."""
        going = tuple(a for a in plan.actions if not self._is_backing_off(a, now))
        if len(going) == len(plan.actions):
            return plan
        if atomic:
            return replace(plan, actions=(), deferred=plan.actions)
        deferred = tuple(a for a in plan.actions if self._is_backing_off(a, now))
        return replace(plan, actions=going, deferred=deferred)

    def explain(self, plan: Plan) -> tuple[ApplyError, ...]:
        """Say why actions of a plan are deferred: once for each kind and reason."""
        groups: dict[tuple[str, str], list[tuple[Action, Backoff]]] = {}
        for action in plan.deferred:
            backoff = self.known.get((action.kind, action.key))
            if backoff is not None:
                reason = "OwnershipFight" if backoff.is_fight else "Refused"
                groups.setdefault((action.kind, reason), []).append((action, backoff))
        return tuple(
            ApplyError(str(members[0][0]), reason, _text(members))
            for (_, reason), members in sorted(groups.items())
        )

    def due(self, plan: Plan) -> float | None:
        """Return when the first deferred action of a plan is due, in monotonic seconds."""
        return min(
            (s.until for a in plan.deferred if (s := self.known.get((a.kind, a.key)))),
            default=None,
        )

    def _is_backing_off(self, action: Action, now: float) -> bool:
        return self._of(action).until > now

    def _of(self, action: Action) -> Backoff:
        known, desired = self.known.get((action.kind, action.key)), getattr(action, "object", None)
        return known if known is not None and known.object == desired else Backoff(desired)

    def _with(self, changed: Mapping[Identity, Backoff]) -> Backoffs:
        if not changed:
            return self
        known = {**self.known, **changed}
        if len(known) > MAX_KNOWN:
            # The changed ones last: the oldest are forgotten.
            earlier = {k: s for k, s in self.known.items() if k not in changed}
            known = dict([*earlier.items(), *changed.items()][-MAX_KNOWN:])
        return Backoffs(known)


def _text(members: list[tuple[Action, Backoff]]) -> str:
    action, backoff = members[0]
    more = f", as {len(members) - 1} more of its kind" if len(members) > 1 else ""
    if not backoff.is_fight:
        return f"{backoff.error}{more}; it has failed {backoff.failures} times in a row"
    span_s = backoff.repairs[-1] - backoff.repairs[0]
    return (
        f"it was put back {REPAIRS} times within {span_s:.0f} s and is changed once more "
        f"({action.reason}){more}; {_advice(backoff)}"
    )


def _advice(backoff: Backoff) -> str:
    """Say what to do. The kernel does not tell who writes a file, so objects may know better."""
    if advice := getattr(backoff.object, "in_a_fight", ""):
        return f"it is put back less often now; {advice}"
    others = ", ".join(backoff.other_writers) or "none identified"
    return (
        f"other writers: {others}. It is put back "
        "less often now; end what the other side does, or take what it wants out of the document"
    )
