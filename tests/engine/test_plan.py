"""The one comparison."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.plan import Change, Key, Plan, Verb, compare, compare_in_place, merge
from reconciler.errors import Issue


@dataclass(frozen=True, slots=True)
class Thing:
    kind: ClassVar[str] = "thing"
    name: int
    size: int = 0
    owner: str = "us"

    @property
    def key(self) -> Key:
        return (self.name,)

    def command(self, verb: Verb) -> str:
        return f"thing {verb} {self.name}"


def is_ours(thing: Thing) -> bool:
    return thing.owner == "us"


things = st.builds(Thing, st.integers(0, 9), st.integers(0, 2))
foreign_things = st.builds(Thing, st.integers(0, 9), st.integers(0, 2), st.just("them"))


def unique(items: list[Thing]) -> list[Thing]:
    return list({t.key: t for t in items}.values())


def test_additions_then_changes_then_removals_in_reverse() -> None:
    plan = compare([Thing(12), Thing(3), Thing(5, 1)], [Thing(5), Thing(1), Thing(2)])
    assert [str(a) for a in plan.actions] == [
        "thing + 3",
        "thing + 12",
        "thing ~ 5",
        "thing - 2",
        "thing - 1",
    ]


def test_a_change_names_the_fields_that_differ() -> None:
    (change,) = compare([Thing(1, 9)], [Thing(1, 4)]).actions
    assert change.reason == "size 4 -> 9"


def test_a_foreign_object_in_the_way_is_refused_not_changed() -> None:
    plan = compare([Thing(1, 9)], [Thing(1, 4, "them")], owned=is_ours)
    assert plan.actions == ()
    assert [r.reason for r in plan.refusals] == ["ForeignObject"]


def test_in_place_whatever_stands_there_is_changed_and_nothing_else_is_deleted() -> None:
    plan = compare_in_place(
        [Thing(1, 9), Thing(2), Thing(3)], [Thing(1, 4, "them"), Thing(3), Thing(4)]
    )
    assert [str(a) for a in plan.actions] == ["thing + 2", "thing ~ 1"]
    assert plan.refusals == ()


@given(st.lists(things), st.lists(things | foreign_things))
def test_nothing_foreign_is_ever_in_a_plan(desired: list[Thing], observed: list[Thing]) -> None:
    plan = compare(unique(desired), unique(observed), owned=is_ours)
    for action in plan.actions:
        assert isinstance(action, Change)
        if action.verb is Verb.DELETE:
            assert is_ours(action.object)
        if action.was is not None:
            assert is_ours(action.was)


@given(st.lists(things), st.lists(things | foreign_things), st.randoms())
def test_a_plan_does_not_depend_on_the_order_of_its_inputs(
    desired: list[Thing], observed: list[Thing], random: object
) -> None:
    want, have = unique(desired), unique(observed)
    first = compare(want, have, owned=is_ours)
    random.shuffle(want)  # type: ignore[attr-defined]
    random.shuffle(have)  # type: ignore[attr-defined]
    assert compare(want, have, owned=is_ours) == first


def test_merged_plans_build_forwards_and_clear_backwards() -> None:
    low = compare([Thing(1)], [Thing(2)])
    high = compare([Thing(3)], [Thing(4)])
    merged = merge({"low": low, "high": high})
    assert [str(a) for a in merged.actions] == ["thing + 1", "thing + 3", "thing - 4", "thing - 2"]


def test_a_plan_with_nothing_but_a_refusal_is_not_empty() -> None:
    assert not Plan()
    assert Plan(refusals=(Issue("x", "Y", "z"),))


def test_plans_add_up_in_every_field() -> None:
    one = Plan(*((name,) for name in ("a", "r", "f", "n", "d", "b")))  # type: ignore[arg-type]
    twice = Plan(*((*getattr(one, f.name),) * 2 for f in fields(Plan)))
    assert one + one == twice
