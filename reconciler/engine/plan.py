"""Objects with keys, one comparison, and the plan it yields.

State is a set of small frozen objects. An object's ``key`` is its identity (for a route:
namespace, table, destination); the other fields may be changed in place. One ``compare`` serves
production, dry-run and the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import ClassVar, Generic, Protocol, TypeVar

from reconciler.errors import Issue

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

    def command(self, verb: Verb) -> str:
        """The command an operator would type to do ``verb`` to this object."""


O_co = TypeVar("O_co", bound=Keyed, covariant=True)
O = TypeVar("O", bound=Keyed)  # noqa: E741 - the object of a Change; the letter is what it is


class Action(Protocol):
    """One change to one object. ``str(action)`` is the command an operator would type.

    ``reason`` is in words for people. ``calls`` are the EC2 calls it costs, by name.
    """

    @property
    def verb(self) -> Verb: ...
    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> Key: ...
    @property
    def reason(self) -> str: ...
    @property
    def calls(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Change(Generic[O_co]):
    """An action on an object of the node itself: as desired; for a delete, as observed.

    ``was`` is as observed; only for an update.
    """

    verb: Verb
    object: O_co
    reason: str
    was: O_co | None = None
    calls: ClassVar[tuple[str, ...]] = ()

    @property
    def kind(self) -> str:
        return self.object.kind

    @property
    def key(self) -> Key:
        return self.object.key

    def __str__(self) -> str:
        return self.object.command(self.verb)


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in the order in which they must be applied, and what was refused."""

    actions: tuple[Action, ...] = ()
    refusals: tuple[Issue, ...] = ()  # what is wanted and not done
    # objects of other owners that operators should know of; they are no differences
    foreign: tuple[Keyed, ...] = ()
    findings: tuple[Issue, ...] = ()  # issues of them, and what to do next
    # actions in backoff, because they failed or were reverted lately
    deferred: tuple[Action, ...] = ()
    # actions that another thread carries out, and that have not come to their end
    begun: tuple[Action, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.actions or self.refusals)

    def __add__(self, other: Plan) -> Plan:
        return Plan(
            self.actions + other.actions,
            self.refusals + other.refusals,
            self.foreign + other.foreign,
            self.findings + other.findings,
            self.deferred + other.deferred,
            self.begun + other.begun,
        )


def compare(
    desired: Iterable[O], observed: Iterable[O], *, owned: Callable[[O], bool] = lambda _: True
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
        elif owned(existing):
            update.append(Change(Verb.UPDATE, obj, _difference(existing, obj), existing))
        else:
            refusals.append(_in_the_way(obj, existing))
    delete: list[Action] = [
        Change(Verb.DELETE, obj, "not desired")
        for obj in sorted(observed - desired, key=_identity, reverse=True)
        if _identity(obj) not in want and owned(obj)
    ]
    return Plan((*create, *update, *delete), tuple(refusals))


def compare_in_place(desired: Iterable[O], observed: Iterable[O]) -> Plan:
    """Return the plan that puts what is desired in its place.

    What stands in no place of a desired object is another owner's: it is not even looked at, and
    nothing is ever deleted.
    """
    missing = frozenset(desired).difference(observed)
    keys = {o.key for o in missing}
    return compare(missing, [o for o in observed if o.key in keys] if keys else ())


def merge(plans: Mapping[str, Plan]) -> Plan:
    """Order the plans of several domains that share a target.

    They are in the order in which the domains build upon each other. What adds and changes runs in
    that order, what deletes afterwards in the reverse order.
    """
    build = [a for p in plans.values() for a in p.actions if a.verb is not Verb.DELETE]
    backwards = reversed(list(plans.values()))
    clear = [a for p in backwards for a in p.actions if a.verb is Verb.DELETE]
    return replace(sum(plans.values(), Plan()), actions=(*build, *clear))


def _identity(obj: Keyed) -> tuple[str, Key]:
    return obj.kind, obj.key


def _difference(was: Keyed, now: Keyed) -> str:
    """Name the fields that differ: ``mtu 1500 -> 9001, up no -> yes``."""
    return ", ".join(
        f"{f.name} {_word(before)} -> {_word(after)}"
        for f in fields(now)  # type: ignore[arg-type]  # Keyed objects are dataclasses by contract
        if f.compare and (before := getattr(was, f.name)) != (after := getattr(now, f.name))
    )


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and value:
        return f"{len(value)} entries"
    return "none" if value in (None, "", ()) else str(value)


def _in_the_way(obj: Keyed, existing: Keyed) -> Issue:
    why = (
        f"another owner's {existing.kind} stands in its place ({_difference(existing, obj)}); "
        "remove it or change the document"
    )
    return Issue(f"{obj.kind} {obj.command(Verb.CREATE)}", "ForeignObject", why, _identity(obj))
