"""Per-object backoff: how long, and what is reported."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.domains.route import Route
from reconciler.engine.backoff import BACKOFF_S, REPAIRS, WINDOW_S, Backoffs
from reconciler.engine.plan import Change, Plan, Verb


def route(number: int, device: str = "eth1") -> Route:
    return Route("", 512, ip_network(f"10.0.0.{number}/32"), device, None, 0, 201)


def put_back(number: int, device: str = "eth1") -> Change[Route]:
    return Change(Verb.CREATE, route(number, device), "missing")


PLAN = Plan((put_back(1), put_back(2)))


def after_repairs(*times: float, who: tuple[str, ...] = ()) -> Backoffs:
    backoffs = Backoffs()
    for now in times:
        backoffs = backoffs.after_repairs([put_back(1)], now, who)
    return backoffs


def test_what_is_put_back_now_and_then_is_put_back_at_once() -> None:
    seldom = [n * WINDOW_S / (REPAIRS - 2) for n in range(20)]
    assert after_repairs(*seldom).hold(PLAN, seldom[-1], atomic=False) == PLAN
    few = after_repairs(*range(REPAIRS - 1))
    assert few.hold(PLAN, REPAIRS - 2, atomic=False) == PLAN


def test_what_is_taken_back_again_and_again_rests_alone_and_is_said_with_who_it_may_be() -> None:
    backoffs = after_repairs(*range(REPAIRS), who=("nft (pid 7)",))
    last = float(REPAIRS - 1)
    held = backoffs.hold(PLAN, last, atomic=False)
    assert (held.actions, held.deferred) == ((put_back(2),), (put_back(1),))
    (error,) = backoffs.explain(held)
    assert (error.action, error.reason) == (str(put_back(1)), "OwnershipFight")
    assert f"{REPAIRS} times within {last:.0f} s" in str(error)
    assert "nft (pid 7)" in str(error)
    due = backoffs.due(held)
    assert due == last + BACKOFF_S[0]
    assert backoffs.hold(PLAN, due, atomic=False) == PLAN


def test_of_what_is_done_together_all_rests() -> None:
    held = after_repairs(*range(REPAIRS)).hold(PLAN, REPAIRS - 1, atomic=True)
    assert (held.actions, held.deferred) == ((), PLAN.actions)


def test_many_that_rest_for_one_reason_are_said_once() -> None:
    backoffs = Backoffs()
    for now in range(REPAIRS):
        for number in range(100):
            backoffs = backoffs.after_repairs([put_back(number)], now, ())
    plan = Plan(tuple(put_back(n) for n in range(100)))
    held = backoffs.hold(plan, REPAIRS - 1, atomic=False)
    (error,) = backoffs.explain(held)
    assert "99 more of its kind" in str(error)
    assert "none identified" in str(error)


def test_another_wish_about_the_same_object_starts_anew() -> None:
    backoffs = after_repairs(*range(REPAIRS))
    plan = Plan((put_back(1, device="eth2"),))
    assert backoffs.hold(plan, REPAIRS - 1, atomic=False) == plan


@given(chances=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_failure_is_tried_again_at_once_and_then_ever_more_seldom_within_bounds(
    chances: list[float],
) -> None:
    backoffs, now = Backoffs(), 100.0
    for failures, chance in enumerate(chances):
        backoffs = backoffs.after_failures([(put_back(1), "no such device")], now, chance)
        held = backoffs.hold(PLAN, now, atomic=False)
        if not failures:
            assert held == PLAN
            continue
        backoff_s = (backoffs.due(held) or now) - now
        ceiling = min(BACKOFF_S[0] * 2 ** (failures - 1), BACKOFF_S[1])
        assert ceiling / 2 - 1e-6 <= backoff_s <= ceiling + 1e-6
        (error,) = backoffs.explain(held)
        assert error.reason == "Refused"
        assert f"no such device; it has failed {failures + 1} times in a row" in str(error)
        now += backoff_s
    done = backoffs.after_success([put_back(1)])
    assert done.known == {}


@pytest.mark.parametrize("waits", [0, 3, 10])
def test_a_fight_that_goes_on_rests_longer_but_never_for_long(waits: int) -> None:
    backoffs, now = after_repairs(*range(REPAIRS)), float(REPAIRS - 1)
    for _ in range(waits):
        now = backoffs.due(backoffs.hold(PLAN, now, atomic=False)) or now
        backoffs = backoffs.after_repairs([put_back(1)], now, ())
    due = backoffs.due(backoffs.hold(PLAN, now, atomic=False))
    known = backoffs.known[put_back(1).kind, put_back(1).key]
    assert known.until - now <= BACKOFF_S[1]
    if due is not None:
        assert due - now == min(BACKOFF_S[0] * 2**waits, BACKOFF_S[1])


def test_what_is_long_over_is_forgotten() -> None:
    backoffs = after_repairs(*range(REPAIRS))
    assert backoffs.since(REPAIRS + 1.0) is backoffs
    assert backoffs.since(REPAIRS + BACKOFF_S[0] + WINDOW_S + 1).known == {}


def test_a_failure_is_forgotten_when_nobody_asks_for_the_object_any_more() -> None:
    """A container that is started again has the same link, which would rest for the first one."""
    backoffs = Backoffs()
    for now in range(8):
        backoffs = backoffs.after_failures([(put_back(1), "ENOENT")], now, 1.0)
    assert backoffs.hold(PLAN, 8, atomic=False).deferred == (put_back(1),)
    held = backoffs.hold(PLAN, 8, atomic=False)
    assert backoffs.asked_for([held]) == backoffs, "what rests is asked for"
    assert backoffs.asked_for([Plan((put_back(2),))]).hold(PLAN, 8, atomic=False) == PLAN


def test_a_fight_is_not_forgotten_because_the_object_is_in_its_place() -> None:
    backoffs = after_repairs(*range(REPAIRS))
    assert backoffs.asked_for([Plan()]) == backoffs


def test_objects_that_are_others_each_time_are_not_all_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reconciler.engine.backoff.MAX_KNOWN", 10)
    backoffs = Backoffs()
    for round_ in range(REPAIRS + 1):
        others = [put_back(n) for n in range(2 + 8 * round_, 10 + 8 * round_)]
        backoffs = backoffs.after_repairs([put_back(1), *others], float(round_), ())
        assert len(backoffs.known) <= 10
    held = backoffs.hold(PLAN, float(REPAIRS), atomic=False)
    assert held.deferred == (put_back(1),), "what is changed again and again is among the last"
