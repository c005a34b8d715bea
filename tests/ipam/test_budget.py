"""The backoff of refused calls: long in itself, short while pods wait for what was refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.ipam.budget import (
    BACKOFF_S,
    CODES,
    GROWTH_CALLS,
    LIFTED,
    WAITING_S,
    CallBackoffs,
    classify,
    cure,
)

ANY_CODE = st.sampled_from(sorted(code for codes in CODES.values() for code in codes))
CHANCES = st.floats(0, 1)


def refused(call: str, code: str, times: int, chance: float = 1.0) -> CallBackoffs:
    """What is known after so many refusals in a row, the last at 0 s."""
    known = CallBackoffs()
    for _ in range(times):
        known = known.after_failure(call, code, "no", now=0.0, chance=chance)
    return known


@given(st.sampled_from(sorted(GROWTH_CALLS)), ANY_CODE, st.integers(1, 20), CHANCES)
def test_pods_that_wait_never_make_a_backoff_longer(
    call: str, code: str, times: int, chance: float
) -> None:
    backoff = refused(call, code, times, chance).by_scope[call]
    assert backoff.ends(waiting=True) <= backoff.ends(waiting=False)
    assert backoff.ends(waiting=False) <= BACKOFF_S[classify(code)].longest
    if classify(code) in LIFTED:
        assert backoff.ends(waiting=True) <= WAITING_S.longest
    else:
        assert backoff.ends(waiting=True) == backoff.ends(waiting=False)


@pytest.mark.parametrize(
    ("call", "code", "waits_s"),
    [
        ("AssignPrivateIpAddresses", "UnauthorizedOperation", 15.0),
        ("CreateNetworkInterface", "NetworkInterfaceLimitExceeded", 15.0),
        # What EC2 throttles is not asked for more often because pods wait.
        ("AssignPrivateIpAddresses", "RequestLimitExceeded", 60.0),
        # No pod waits for these.
        ("UnassignPrivateIpAddresses", "UnauthorizedOperation", 600.0),
        ("DeleteNetworkInterface", "UnauthorizedOperation", 600.0),
    ],
)
def test_while_pods_wait_what_may_be_allowed_again_is_asked_for_soon(
    call: str, code: str, waits_s: float
) -> None:
    known = refused(call, code, 10)
    assert known.of(call, waits_s - 1, waiting=True)
    assert known.of(call, waits_s, waiting=True) is None
    assert (known.of(call, 16.0) is None) == (waits_s < 15.0)


def test_a_node_that_is_denied_for_long_asks_some_ten_times_in_two_minutes() -> None:
    """In the middle; a single node's share of EC2's limits is a call a second and more."""
    known, now, calls = CallBackoffs(), 0.0, 0
    while now < 120.0:
        known = known.after_failure(
            "CreateNetworkInterface", "UnauthorizedOperation", "no", now=now, chance=0.5
        )
        now, calls = known.by_scope["CreateNetworkInterface"].ends(waiting=True), calls + 1
    assert 8 <= calls <= 13


def test_a_denial_names_the_right_and_the_next_step() -> None:
    told = cure("CreateNetworkInterface", "UnauthorizedOperation")
    assert "allow ec2:CreateNetworkInterface to the node's role" in told
    assert "node-network retry" in told
    assert cure("CreateNetworkInterface", "RequestLimitExceeded") == ""
