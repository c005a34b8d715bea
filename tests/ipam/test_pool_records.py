"""How long an address is withheld that EC2 was asked to take back, or takes back by itself."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from builders import eni

from reconciler.engine.plan import Change
from reconciler.ipam import pool_records
from reconciler.ipam.pool import Band
from reconciler.ipam.pool_records import Wanted
from reconciler.ipam.records import Records
from reconciler.ipam.release import RELEASED_WAIT_S, Quarantine, Stock, Unit, pick

ONE = ip_network("10.0.1.11/32")
BEGAN, ASKED, NOW = 1000.0, 5000.0, 5010.0
HOUR_S, TEN_YEARS_S = 3600.0, 10 * 365 * 86400.0


def step(
    record: Quarantine, now: float, *, shown: bool, wanted: bool = False
) -> Quarantine | None:
    """Return what becomes of a record once nothing more is planned; None if it is ended."""
    desired = Wanted(frozenset({ONE} if wanted else ()), frozenset({ONE} if shown else ()), now)
    for _ in range(4):
        actions = pool_records.plan_quarantines(desired, Records(quarantined=(record,))).actions
        if not actions:
            return record
        (action,) = actions
        assert isinstance(action, Change)
        if str(action).startswith("end"):
            return None
        record = action.object
    raise AssertionError("it does not come to rest")


def test_the_time_counts_from_when_ec2_stopped_showing_it_and_not_from_the_beginning() -> None:
    """A release that was refused for an hour takes effect an hour after the quarantine began."""
    record = step(Quarantine(ONE, BEGAN, asked=0.0), NOW, shown=False)
    assert record is not None, "the look that shows it gone begins the time"
    assert record.gone == NOW
    assert step(record, NOW + RELEASED_WAIT_S - 1, shown=False) == record
    assert step(record, NOW + RELEASED_WAIT_S, shown=False) is None


def test_an_old_look_does_not_give_back_what_ec2_was_asked_to_take() -> None:
    """Asked, killed before the answer, started again: the look may be older than the release."""
    record = Quarantine(ONE, BEGAN, asked=ASKED)
    assert step(record, NOW, shown=True) == record
    assert step(record, ASKED + RELEASED_WAIT_S, shown=True) is None, "then it is ours indeed"


def test_an_old_look_does_not_give_back_what_another_look_lacked() -> None:
    record = step(Quarantine(ONE, BEGAN), NOW, shown=False)
    assert record is not None
    assert step(record, NOW + 30, shown=True) == record


def test_what_ec2_was_never_asked_for_comes_back_at_once() -> None:
    assert step(Quarantine(ONE, BEGAN), NOW, shown=True) is None


def test_what_is_still_to_be_given_back_stays() -> None:
    record = Quarantine(ONE, BEGAN, asked=ASKED)
    assert step(record, ASKED + TEN_YEARS_S, shown=True, wanted=True) == record


def test_ec2_is_asked_only_for_what_was_written_down() -> None:
    other = Quarantine(ip_network("10.0.1.12/32"), BEGAN)
    records = Records(quarantined=(Quarantine(ONE, BEGAN), other))
    (action,) = pool_records.ask({ONE}, records, NOW).actions
    assert isinstance(action, Change)
    assert action.object == Quarantine(ONE, BEGAN, asked=NOW)


@pytest.mark.parametrize("back_s", [HOUR_S, TEN_YEARS_S])
@pytest.mark.parametrize("shown", [True, False])
def test_a_clock_that_is_set_back_makes_no_quarantine_longer_than_its_time(
    back_s: float, shown: bool
) -> None:
    record: Quarantine | None = Quarantine(
        ONE, BEGAN + back_s, asked=ASKED + back_s, gone=0.0 if shown else ASKED + back_s
    )
    assert record is not None
    record = step(record, NOW, shown=shown)
    assert record is not None, "it is not ended by the step either"
    assert step(record, NOW + RELEASED_WAIT_S, shown=shown) is None


def test_what_may_be_gone_already_does_not_come_back_into_the_pool() -> None:
    units = tuple(Unit(eni(0), n) for n in (ONE, ip_network("10.0.1.12/32")))
    stock = Stock((), units, 0, ())
    band = Band(2, 2, 4, (), "")
    assert pick(stock, band) == frozenset()
    assert pick(stock, band, maybe_released={ONE}) == {ONE}


@pytest.mark.parametrize(
    ("record", "ends"),
    [
        (Quarantine(ONE, BEGAN, asked=ASKED, gone=ASKED + 1), True),
        (Quarantine(ONE, BEGAN, asked=ASKED), False),
        (Quarantine(ip_network("10.0.1.12/32"), BEGAN, asked=ASKED, gone=ASKED + 1), False),
    ],
    ids=["given again", "its release may be on its way", "another"],
)
def test_what_ec2_answers_to_have_given_again_ends_a_quarantine(
    record: Quarantine, ends: bool
) -> None:
    plan = pool_records.plan_given_again({ONE}, Records(quarantined=(record,)))
    assert bool(plan.actions) is ends
