"""Rounds over targets that lie, break and are slow to obey."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from reconciler.engine.converge import Domain, actions_of, converge, dry_run
from reconciler.engine.plan import Change, Key, Plan, Verb, compare
from reconciler.errors import ApplyError, InternalError, NotReadyError, ObserveError


@dataclass(frozen=True, slots=True)
class Named:
    kind: ClassVar[str] = ""
    name: str

    @property
    def key(self) -> Key:
        return (self.name,)

    def command(self, verb: Verb) -> str:
        return f"{self.kind} {verb} {self.name}"


@dataclass(frozen=True, slots=True)
class Low(Named):
    kind: ClassVar[str] = "low"


@dataclass(frozen=True, slots=True)
class High(Named):
    kind: ClassVar[str] = "high"


class Shelf:
    """A target that holds things, and writes down what it was asked."""

    def __init__(self, *things: Any, refuse: Iterable[str] = (), deaf: bool = False) -> None:
        self.things = set(things)
        self.refuse = set(refuse)
        self.deaf = deaf
        self.looks = 0
        self.batches: list[list[str]] = []

    def observe(self, desired: Iterable[Any]) -> frozenset[Any]:
        self.looks += 1
        return frozenset(self.things)

    def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
        self.batches.append([str(a) for a in actions])
        failures = []
        for action in actions:
            if action.object.name in self.refuse:
                failures.append(ApplyError(str(action), "EPERM", "no"))
            elif not self.deaf:
                change = self.things.discard if action.verb is Verb.DELETE else self.things.add
                change(action.object)
        return tuple(failures)


class Blind(Shelf):
    def observe(self, desired: Iterable[Any]) -> frozenset[Any]:
        raise ObserveError("shelf", "it is dark")


def domain(kind: type, target: Shelf, *wanted: str) -> Domain:
    return Domain(
        kind.__name__.lower(),
        lambda _: frozenset(kind(w) for w in wanted),
        compare,
        target,
        (kind,),
    )


def test_domains_of_one_target_share_looks_and_one_application() -> None:
    shelf = Shelf(Low("old"), High("old"))
    outcomes = converge([domain(Low, shelf, "a"), domain(High, shelf, "b")], None)
    assert shelf.batches == [["low + a", "high + b", "high - old", "low - old"]]
    assert shelf.looks == 2
    assert all(o.settled for o in outcomes.values())
    assert shelf.things == {Low("a"), High("b")}


def test_a_dry_run_looks_and_touches_nothing() -> None:
    shelf = Shelf(Low("old"))
    outcomes = dry_run([domain(Low, shelf, "a")], None)
    assert [str(a) for _, a in actions_of(outcomes)] == ["low + a", "low - old"]
    assert (shelf.batches, shelf.things) == ([], {Low("old")})


def test_what_is_in_sync_is_looked_at_once_and_left_alone() -> None:
    shelf = Shelf(Low("a"))
    assert converge([domain(Low, shelf, "a")], None)["low"].settled
    assert (shelf.looks, shelf.batches) == (1, [])


def test_a_failed_action_does_not_stop_the_others_and_is_reported() -> None:
    shelf = Shelf(refuse={"b"})
    outcome = converge([domain(Low, shelf, "a", "b", "c")], None)["low"]
    assert shelf.things == {Low("a"), Low("c")}
    assert [e.reason for e in outcome.errors if isinstance(e, ApplyError)] == ["EPERM"]
    assert not outcome.settled


def test_success_is_what_was_seen_not_what_was_answered() -> None:
    outcome = converge([domain(Low, Shelf(deaf=True), "a")], None)["low"]
    assert not outcome.settled
    assert [str(a) for a in outcome.remaining.actions] == ["low + a"]


def test_the_same_plan_again_ends_the_rounds() -> None:
    shelf = Shelf(deaf=True)
    converge([domain(Low, shelf, "a")], None)
    assert len(shelf.batches) == 1


def test_what_goes_while_others_are_put_in_place_is_planned_too_and_each_thing_once() -> None:
    class Shaken(Shelf):
        def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
            failures = super().apply(actions)
            if len(self.batches) == 1:
                self.things -= {Low("a"), Low("c"), High("b")}
            return failures

    shelf = Shaken(Low("c"), High("b"))
    outcomes = converge([domain(Low, shelf, "a", "c"), domain(High, shelf, "b")], None)
    assert [sorted(batch) for batch in shelf.batches] == [
        ["low + a"],
        ["high + b", "low + a", "low + c"],
    ]
    done = {name: [str(a) for a in o.plan.actions] for name, o in outcomes.items()}
    assert done == {"low": ["low + a", "low + c"], "high": ["high + b"]}
    assert all(o.settled for o in outcomes.values())


def test_nothing_is_deleted_on_a_failed_look() -> None:
    unreadable = Blind(Low("old"))
    outcome = converge([domain(Low, unreadable)], None)["low"]
    assert unreadable.batches == []
    assert [type(e) for e in outcome.errors] == [ObserveError]


def test_a_target_that_cannot_be_read_takes_no_other_down() -> None:
    shelf = Shelf()
    outcomes = converge([domain(Low, Blind()), domain(High, shelf, "b")], None)
    assert not outcomes["low"].settled
    assert outcomes["high"].settled
    assert shelf.things == {High("b")}


def test_a_domain_that_is_not_ready_takes_its_neighbour_not_down() -> None:
    shelf = Shelf(Low("mine"))

    def unknown(_: Any) -> Any:
        raise NotReadyError("not yet")

    waiting = Domain("low", unknown, compare, shelf, (Low,))
    outcomes = converge([waiting, domain(High, shelf, "b")], None)
    assert [type(e) for e in outcomes["low"].errors] == [NotReadyError]
    assert outcomes["low"].plan == Plan()
    assert shelf.things == {Low("mine"), High("b")}


def test_what_is_undone_before_the_second_look_is_told_from_what_was_refused() -> None:
    shelf = Shelf(refuse={"b"}, deaf=True)
    outcome = converge([domain(Low, shelf, "a", "b")], None)["low"]
    assert [str(a) for a in outcome.reverted] == ["low + a"]
    assert [e.action for e in outcome.errors if isinstance(e, ApplyError)] == ["low + b"]
    assert converge([domain(Low, Shelf(), "a")], None)["low"].reverted == ()
    assert dry_run([domain(Low, shelf, "a")], None)["low"].reverted == ()


SURPRISES = [
    KeyError("CidrBlock"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    AssertionError(),
]


class UnspeakableError(Exception):
    """It fails even at saying what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")


def raising(surprise: Exception, from_call: int = 0) -> Callable[..., Any]:
    calls = iter(range(1000))

    def call(*_: Any) -> Any:
        if next(calls) >= from_call:
            raise surprise
        return ()

    return call


@pytest.mark.parametrize(
    "surprise", [*SURPRISES, UnspeakableError()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("call", ["desire", "plan"])
def test_a_domain_that_raises_anything_fails_alone_even_beside_others_of_its_target(
    call: str, surprise: Exception
) -> None:
    shelf, another = Shelf(Low("mine")), Shelf()
    broken = replace(domain(Low, shelf, "a"), **{call: raising(surprise)})
    outcomes = converge([broken, domain(High, shelf, "b"), domain(High, another, "c")], None)
    (error,) = outcomes["low"].errors
    assert isinstance(error, InternalError)
    assert error.what == f"{call} of low"
    assert type(surprise).__name__ in str(error)
    assert "test_converge.py" in error.place
    assert shelf.things == {Low("mine"), High("b")}  # nothing of its own is touched
    assert another.things == {High("c")}


@pytest.mark.parametrize(
    "surprise", [*SURPRISES, UnspeakableError()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize(("call", "before"), [("observe", 0), ("observe", 1), ("apply", 0)])
def test_a_target_that_raises_anything_fails_alone(
    call: str, before: int, surprise: Exception
) -> None:
    shelf, another = Shelf(Low("old")), Shelf()
    was = getattr(shelf, call)
    fails = raising(surprise, before)
    setattr(shelf, call, lambda *a: fails() or was(*a))
    outcomes = converge([domain(Low, shelf, "a"), domain(High, another, "b")], None)
    (error,) = outcomes["low"].errors
    assert isinstance(error, InternalError)
    assert error.what == f"{call} of low"
    assert not outcomes["low"].settled
    assert outcomes["high"].settled
    assert another.things == {High("b")}


def test_what_an_application_did_before_it_raised_was_seen() -> None:
    shelf = Shelf(Low("old"))

    def apply(actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
        Shelf.apply(shelf, actions[:1])
        raise KeyError("after the first")

    shelf.apply = apply  # type: ignore[method-assign]
    outcome = converge([domain(Low, shelf, "a", "b")], None)["low"]
    assert Low("a") in shelf.things
    assert outcome.observed == frozenset(shelf.things)
    assert [type(e) for e in outcome.errors] == [InternalError]


def test_a_dry_run_survives_a_domain_that_raises() -> None:
    shelf = Shelf()
    broken = replace(domain(Low, Shelf(), "a"), plan=raising(KeyError("x")))
    outcomes = dry_run([broken, domain(High, shelf, "b")], None)
    assert [type(e) for e in outcomes["low"].errors] == [InternalError]
    assert [str(a) for _, a in actions_of(outcomes)] == ["high + b"]
