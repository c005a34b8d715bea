"""Objects with keys, one comparison, and the plan it yields.

State is a set of small frozen objects. An object's ``key`` is its identity (for a route:
namespace, table, destination); the other fields may be changed in place. One ``compare`` serves
production, dry-run and the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from reconciler.engine.issue import Issue

Key = tuple[int | str, ...]
"""An identity: numbers stay numbers, so that priority 512 sorts before 1536."""


class Verb(StrEnum):
    """What an action does to its object, as ``diff`` prints it."""

    CREATE = "+"
    UPDATE = "~"
    DELETE = "-"


class Keyed(Protocol):
    """One object of the desired or observed state: a frozen dataclass."""

    kind: ClassVar[str]
    """The object's noun, as ``diff``, logs and metrics print it."""

    @property
    def key(self) -> Key:
        """Identity among objects of this kind; the sort order of plans."""
        ...

    def command(self, verb: Verb) -> str:
        """The command an operator would type to do ``verb`` to this object."""
        ...


O_co = TypeVar("O_co", bound=Keyed, covariant=True)
O = TypeVar("O", bound=Keyed)  # noqa: E741 - the object of a Change; the letter is what it is


class Action(Protocol):
    """One change to one object. ``str(action)`` is the command an operator would type."""

    @property
    def verb(self) -> Verb:
        """Create, update or delete."""
        ...

    @property
    def kind(self) -> str:
        """The object's noun."""
        ...

    @property
    def key(self) -> Key:
        """The object's identity."""
        ...

    @property
    def reason(self) -> str:
        """Why, in words for people."""
        ...

    @property
    def calls(self) -> tuple[str, ...]:
        """The EC2 calls it costs, by name; empty for anything on the node."""
        ...


@dataclass(frozen=True, slots=True)
class Change(Generic[O_co]):
    """An action on an object of the node itself.

    Attributes:
        object: as desired; for a delete, as observed.
        was: as observed; only for an update.
    """

    verb: Verb
    object: O_co
    reason: str
    was: O_co | None = None
    calls: ClassVar[tuple[str, ...]] = ()

    @property
    def kind(self) -> str:
        """The object's noun."""
        return self.object.kind

    @property
    def key(self) -> Key:
        """The object's identity."""
        return self.object.key

    def __str__(self) -> str:
        return self.object.command(self.verb)


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in the order in which they must be applied, and what was refused.

    Attributes:
        refusals: what is wanted and not done.
        foreign: objects of other owners that operators should know of; they are no differences.
        findings: issues of them, and what to do next.
        deferred: actions in backoff, because they failed or were reverted lately.
    """

    actions: tuple[Action, ...] = ()
    refusals: tuple[Issue, ...] = ()
    foreign: tuple[Keyed, ...] = ()
    findings: tuple[Issue, ...] = ()
    deferred: tuple[Action, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.actions or self.refusals)

    def __add__(self, other: Plan) -> Plan:
        return Plan(
            self.actions + other.actions,
            self.refusals + other.refusals,
            self.foreign + other.foreign,
            self.findings + other.findings,
            self.deferred + other.deferred,
        )


def compare(
    desired: Iterable[O],
    observed: Iterable[O],
    *,
    owned: Callable[[O], bool] = lambda _: True,
) -> Plan:
    """Return the plan that turns ``observed`` into ``desired``.

    Additions, then changes, each in key order; then removals in reverse key order, so that what
    was built last is removed first. What is on both sides, nearly everything, is left out first:
    a set's hashes are there, and keys have to be made.

    Args:
        desired: no two objects of one key.
        observed: what exists, foreign objects included.
        owned: whether an observed object is ours. A foreign object is never changed or deleted;
            in the place of a desired object it becomes a refusal.
    """
    desired, observed = frozenset(desired), frozenset(observed)
    want = {_identity(o): o for o in desired - observed}
    have = {_identity(o): o for o in observed - desired}
    create: list[Action] = []
    update: list[Action] = []
    refusals: list[Issue] = []
    for identity in sorted(want):
        obj, existing = want[identity], have.get(identity)
        if existing is None:
            create.append(Change(Verb.CREATE, obj, "missing"))
        elif existing != obj:
            if owned(existing):
                update.append(Change(Verb.UPDATE, obj, _difference(existing, obj), existing))
            else:
                refusals.append(_in_the_way(obj, existing))
    delete: list[Action] = [
        Change(Verb.DELETE, obj, "not desired")
        for obj in sorted(observed - desired, key=_identity, reverse=True)
        if _identity(obj) not in want and owned(obj)
    ]
    return Plan((*create, *update, *delete), tuple(refusals))


def merge(plans: Mapping[str, Plan]) -> Plan:
    """Order the plans of several domains that share a target.

    Args:
        plans: by domain, in the order in which the domains build upon each other. What adds and
            changes runs in that order, what deletes afterwards in the reverse order.
    """
    build = [a for p in plans.values() for a in p.actions if a.verb is not Verb.DELETE]
    backwards = reversed(list(plans.values()))
    clear = [a for p in backwards for a in p.actions if a.verb is Verb.DELETE]
    rest = sum((replace(p, actions=()) for p in plans.values()), Plan())
    return replace(rest, actions=(*build, *clear))


def _identity(obj: Keyed) -> tuple[str, Key]:
    return obj.kind, obj.key


def _difference(was: Keyed, now: Keyed) -> str:
    """Name the fields that differ: ``mtu 1500 -> 9001, up no -> yes``."""
    parts = []
    for f in fields(now):  # type: ignore[arg-type]  # Keyed objects are dataclasses by contract
        before, after = getattr(was, f.name), getattr(now, f.name)
        if f.compare and before != after:
            parts.append(f"{f.name} {_word(before)} -> {_word(after)}")
    return ", ".join(parts)


def _word(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case None | "":
            return "none"
        case tuple():
            return f"{len(value)} entries" if value else "none"
        case _:
            return str(value)


def _in_the_way(obj: Keyed, existing: Keyed) -> Issue:
    return Issue(
        subject=f"{obj.kind} {obj.command(Verb.CREATE)}",
        reason="ForeignObject",
        message=f"another owner's {existing.kind} stands in its place "
        f"({_difference(existing, obj)}); remove it or change the document",
        about=_identity(obj),
    )
