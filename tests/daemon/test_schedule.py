"""When the kernel loop's passes are due, without a clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.daemon.requests import QUIET_S
from reconciler.daemon.schedule import (
    FULL_PASS_S,
    PASS_SHARE,
    Schedule,
    due_s,
    is_audit_due,
    share_due_s,
)
from reconciler.node.visits import SHARE

NOW = 1000.0
CALM = Schedule(pods_at=NOW - 60, full_pass_at=NOW - 60, full_pass_s=0.1, wait_s=300.0)


def due(schedule: Schedule, *hints: str, is_awaited: bool = False) -> float:
    return due_s(schedule, frozenset(hints), NOW, is_awaited=is_awaited)


def test_the_first_full_pass_is_due_at_once() -> None:
    assert due(Schedule()) <= 0
    assert due(Schedule(), "start") <= 0


def test_without_a_hint_a_full_pass_waits_for_its_time() -> None:
    assert due(CALM) == 240.0
    assert due(replace(CALM, wait_s=60.0)) == 0.0


@pytest.mark.parametrize("hint", ["kernel", "pool", "cooldown", "files"])
def test_pods_put_off_what_a_notification_asks_for_but_not_for_long(hint: str) -> None:
    assert due(CALM, hint) <= 0
    coming = replace(CALM, pods_at=NOW, full_pass_at=NOW - 0.1, full_pass_s=0.0)
    assert due(coming, hint) == pytest.approx(QUIET_S)
    assert due(replace(coming, full_pass_at=NOW - FULL_PASS_S), hint) == pytest.approx(0)


@pytest.mark.parametrize("hint", ["look", "edited", "start", "stop"])
def test_other_hints_and_pods_that_wait_for_a_full_pass_put_it_off_for_nothing(hint: str) -> None:
    coming = replace(CALM, pods_at=NOW, full_pass_at=NOW)
    assert due(coming, "kernel", hint) <= 0
    assert due(coming, "kernel", is_awaited=True) <= 0


def test_whoever_changes_the_kernel_without_end_has_a_share_of_a_core() -> None:
    slow = replace(CALM, full_pass_at=NOW - 2.0, full_pass_s=2.0)
    assert due(slow, "kernel") == pytest.approx(PASS_SHARE * 2.0 - 2.0)


def test_every_pod_is_looked_into_at_each_resync_and_by_heavy_hints() -> None:
    lately = Schedule(audit_at=NOW - 10)
    assert not is_audit_due(lately, frozenset({"kernel", "intent"}), NOW, 300.0)
    assert is_audit_due(lately, frozenset({"edited"}), NOW, 300.0)
    assert is_audit_due(replace(lately, audit_at=NOW - 270), frozenset(), NOW, 300.0)


def test_what_an_audit_leaves_is_looked_into_evenly_until_the_next() -> None:
    began = CALM.after_full_pass(NOW - 10, 0.1, audit=True)
    assert share_due_s(began, SHARE, 300.0, NOW) == float("inf")
    assert share_due_s(began, SHARE + 1, 300.0, NOW) == 140.0
    assert share_due_s(began, 10 * SHARE, 300.0, NOW) == 20.0
    other = began.after_full_pass(NOW, 0.1, audit=False)
    assert share_due_s(other, 10 * SHARE, 300.0, NOW) == 20.0
