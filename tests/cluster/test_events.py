"""Which Events are told, and when: pure."""

from __future__ import annotations

import json

from reconciler.cluster import events
from reconciler.cluster.events import BURST, LASTS_S, MOST_KNOWN, Event, Ledger
from reconciler.errors import Issue

NODE = ("node-1", "u-1")
DENIED = Issue("assign", "UnauthorizedOperation", "EC2 denies it")
REFUSED = Issue("intent c1/eth0", "AddressesExhausted", "no address is free")


def refuse(pod: str, wall: float = 0.0, issue: Issue = REFUSED) -> tuple[Event, ...]:
    found = events.refusal(pod, "u-2", issue, wall)
    return (found,) if found else ()


def tell(ledger: Ledger, now: float) -> tuple[Ledger, list[Event]]:
    """Tell all that is due."""
    due = ledger.due(now)
    for event in due:
        ledger = ledger.after_telling(event, now)
    return ledger, list(due)


def test_a_condition_that_lasts_is_told_once_an_hour_and_one_that_ends_by_itself_is_not() -> None:
    ledger, told = Ledger(), []
    for now in range(0, 7300, 10):
        # Away for a moment it goes on; away for longer it begins anew.
        issues = [] if now == 10 or 20 < now < 70 else [DENIED]
        ledger = ledger.after_troubles(issues, NODE, now, 1000.0 + now)
        ledger, due = tell(ledger, now)
        told += [(now, e) for e in due]
    assert [at for at, _ in told] == [70 + LASTS_S, 70 + LASTS_S + 3600]
    event = told[0][1]
    assert (event.kind, event.namespace, event.name, event.uid) == ("Node", "default", *NODE)
    assert event.message == "assign: EC2 denies it"
    assert told[1][1].first == 1070.0


def test_a_condition_that_comes_and_goes_is_not_told_each_time() -> None:
    ledger, told = Ledger(), 0
    for now in range(0, 3600, 10):
        ledger = ledger.after_troubles([DENIED] * (now % 200 < 100), NODE, now, 0.0)
        ledger, due = tell(ledger, now)
        told += len(due)
    assert told == 1


def test_conditions_of_one_reason_are_one_event() -> None:
    many = [Issue(f"intent {n}", "AddressesExhausted", "none free") for n in range(50)]
    ledger = Ledger()
    for now in range(0, int(LASTS_S) + 1, 10):
        ledger = ledger.after_troubles(many, NODE, now, 0.0)
    (event,) = ledger.due(LASTS_S)
    assert event.message == "intent 0: none free, and 49 more"


def test_a_pod_that_fails_ten_thousand_times_makes_few_events_with_counts() -> None:
    ledger, told = Ledger(), []
    for now in range(10_000):
        ledger = ledger.after_refusals(refuse("default/hostile", float(now)), now)
        ledger, due = tell(ledger, now)
        told += [(now, e) for e in due]
    assert [at for at, _ in told] == [0, 300, 900, 2100, 4500, 8100]
    assert [e.count for _, e in told] == [1, 300, 600, 1200, 2400, 3600]
    assert sum(e.count for _, e in told) <= 10_000
    body = json.loads(events.create(told[1][1], "node-1", "T1", "T2").body)
    assert body["message"] == "no address is free (300 times since T1)"
    assert body["involvedObject"]["uid"] == "u-2"
    assert body["metadata"]["namespace"] == "default"


def test_ten_thousand_pods_that_fail_make_no_more_than_the_budget_and_leave_the_nodes() -> None:
    ledger, told = Ledger(), []
    for now in range(3600):
        for number in range(3):
            ledger = ledger.after_refusals(refuse(f"default/p{3 * now + number}"), now)
        if now > 1000:
            ledger = ledger.after_troubles([DENIED], NODE, now, 0.0)
        ledger, due = tell(ledger, now)
        told += due
        assert len(ledger.known) <= MOST_KNOWN + 1
    pods = [e for e in told if e.kind == "Pod"]
    assert len(pods) <= BURST + 3600 / 30
    assert len(pods) < len(told)


def test_what_cannot_be_told_in_time_is_old() -> None:
    ledger = Ledger().after_refusals(refuse("default/web"), 0.0)
    assert len(ledger.due(events.MOST_WAITING_S - 1)) == 1
    old = events.MOST_WAITING_S + 1
    assert ledger.after_refusals((), old).due(old) == ()


def test_texts_of_others_are_bounded() -> None:
    long = Issue("x", "a b\n" * 1000, "y\x1b" * 10_000)
    (event,) = refuse("ns/" + "p" * 300, issue=long)
    assert len(event.message) <= 512
    assert event.message.isprintable()
    assert event.reason.isalnum()


def test_what_is_nothing_wrong_or_no_pod_is_no_event() -> None:
    for reason in ("Withdrawn", "AlreadyAttached", "ReconcilerEnding"):
        assert refuse("default/web", issue=Issue("x", reason, "y")) == ()
    assert refuse("") == refuse("web") == ()
