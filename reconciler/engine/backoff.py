"""Backoff for objects that keep reverting or failing, one by one.

Two things keep us from having our way. The kernel refuses: then the same is tried again ever more
seldom. Or somebody else takes back what we do: then neither side ever ends by itself, so ours
slows down and says so. Both are about one object as it is desired; a change of it, or of the
document, starts anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from reconciler.engine.plan import Action, Key, Plan
from reconciler.errors import ApplyError

REPAIRS = 5
"""How often an object is put back within ``WINDOW_S`` until that counts as a fight: a reload of a
firewall, or somebody who tries things out, takes less."""

WINDOW_S = 60.0

BACKOFF_S = (1.0, 30.0)
"""First and longest backoff in seconds, doubled each time: what the other side breaks may be what
pods need, so it is never left broken for long."""

MAX_KNOWN = 40_000
"""Objects that are remembered: twice what a document can have in our sets. Whoever puts other
objects into our table each time would have us remember a million within ``WINDOW_S``, of half a
KiB each. One that is forgotten has no backoff."""

Identity = tuple[str, Key]
"""An object's kind and key."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """What became of putting one object in its place.

    Attributes:
        object: as it was desired, or for what must go, as it was found.
        repairs: when it was put back, the last ones, in monotonic seconds.
        failures: in a row.
        error: why the last one failed; "" if it did not.
        waits: in a row.
        until: monotonic seconds until which it is left alone.
        other_writers: who else has changed the kernel's networking around the last repair.
    """

    object: Any
    repairs: tuple[float, ...] = ()
    failures: int = 0
    error: str = ""
    waits: int = 0
    until: float = 0.0
    other_writers: tuple[str, ...] = ()

    @property
    def is_fight(self) -> bool:
        """Whether somebody takes back again and again what we do."""
        return len(self.repairs) == REPAIRS and self.repairs[-1] - self.repairs[0] <= WINDOW_S

    def is_over(self, now: float) -> bool:
        """Whether nothing has happened for so long that there is nothing left to remember."""
        last = max((*self.repairs[-1:], self.until))
        return now - last > WINDOW_S


@dataclass(frozen=True, slots=True)
class Backoffs:
    """All of them."""

    known: Mapping[Identity, Backoff] = field(default_factory=dict)

    def after_repair(self, action: Action, now: float, other_writers: tuple[str, ...]) -> Backoffs:
        """Note that drift of an object was put right."""
        return self.after_repairs([action], now, other_writers)

    def after_repairs(
        self, actions: Iterable[Action], now: float, other_writers: tuple[str, ...]
    ) -> Backoffs:
        """Note that drift of objects was put right.

        All at once: whoever flushes a set takes ten thousand.
        """
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
                after = replace(
                    after, waits=before.waits + 1, until=now + _backoff_s(before.waits)
                )
            changed[action.kind, action.key] = after
        return self._with(changed)

    def after_failure(self, action: Action, now: float, error: str, chance: float) -> Backoffs:
        """Note that an action failed; the first failure is tried again at once."""
        return self.after_failures([(action, error)], now, chance)

    def after_failures(
        self, failures: Iterable[tuple[Action, str]], now: float, chance: float
    ) -> Backoffs:
        """Note that actions failed; the first failure of each is tried again at once.

        Args:
            failures: what was tried, and what the kernel answered.
            now: monotonic seconds.
            chance: a random number from 0 to 1, so that nodes do not go in step.
        """
        changed: dict[Identity, Backoff] = {}
        for action, error in failures:
            before = self._of(action)
            backoff_s = (
                _backoff_s(before.failures - 1) * (0.5 + chance / 2) if before.failures else 0.0
            )
            changed[action.kind, action.key] = replace(
                before,
                failures=before.failures + 1,
                error=error,
                until=max(before.until, now + backoff_s),
            )
        return self._with(changed)

    def after_success(self, actions: Iterable[Action]) -> Backoffs:
        """Forget failures of what has worked, and was no drift."""
        done = {(a.kind, a.key) for a in actions} & self.known.keys()
        return self._only(lambda identity, s: identity not in done or bool(s.repairs))

    def asked_for(self, plans: Iterable[Plan]) -> Backoffs:
        """Forget failures of what a full pass did not ask for.

        It is in its place, or it is not wanted any more. A container that is started again has the
        same link as before, which must not wait for what became of the first one.
        """
        asked = {(a.kind, a.key) for p in plans for a in (*p.actions, *p.deferred)}
        return self._only(lambda identity, s: identity in asked or bool(s.repairs))

    def since(self, now: float) -> Backoffs:
        """Forget what is long over."""
        return self._only(lambda _, s: not s.is_over(now))

    def _only(self, keep: Callable[[Identity, Backoff], bool]) -> Backoffs:
        """Return those that are kept; itself, if all are."""
        kept = {k: s for k, s in self.known.items() if keep(k, s)}
        return Backoffs(kept) if len(kept) < len(self.known) else self

    def hold(self, plan: Plan, now: float, *, atomic: bool) -> Plan:
        """Leave out what is in backoff.

        Args:
            plan: of one domain.
            now: monotonic seconds.
            atomic: whether its actions are done together or not at all.
        """
        deferred = tuple(a for a in plan.actions if self._is_backing_off(a, now))
        if not deferred:
            return plan
        if atomic:
            return replace(plan, actions=(), deferred=plan.actions)
        going = tuple(a for a in plan.actions if not self._is_backing_off(a, now))
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
        """Return the monotonic seconds at which the first deferred action of a plan is due."""
        return min(
            (s.until for a in plan.deferred if (s := self.known.get((a.kind, a.key)))),
            default=None,
        )

    def _is_backing_off(self, action: Action, now: float) -> bool:
        backoff = self.known.get((action.kind, action.key))
        return backoff is not None and backoff.until > now and backoff.object == _object(action)

    def _of(self, action: Action) -> Backoff:
        known = self.known.get((action.kind, action.key))
        if known is not None and known.object == _object(action):
            return known
        return Backoff(_object(action))

    def _with(self, changed: Mapping[Identity, Backoff]) -> Backoffs:
        if not changed:
            return self
        known = {**self.known, **changed}
        if len(known) > MAX_KNOWN:
            # Those that changed now last: what has been known longest is forgotten.
            earlier = {k: s for k, s in self.known.items() if k not in changed}
            known = {**earlier, **changed}
            known = dict(islice(known.items(), len(known) - MAX_KNOWN, None))
        return Backoffs(known)


def _object(action: Action) -> Any:
    return getattr(action, "object", None)


def _backoff_s(before: int) -> float:
    return min(BACKOFF_S[0] * 2.0 ** min(before, 16), BACKOFF_S[1])


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
    """Say what to do; the kernel's notifications tell nothing about who writes a file."""
    if advice := getattr(backoff.object, "in_a_fight", ""):
        return f"it is put back less often now; {advice}"
    others = ", ".join(backoff.other_writers) or "none identified"
    return (
        f"other writers: {others}. It is put back "
        "less often now; end what the other side does, or take what it wants out of the document"
    )
