"""The switches, without EC2: what a call gets, and how often."""

from __future__ import annotations

import json
import threading

import pytest

from lab.faults import SWITCHES, Faults, Injected


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faults(clock: Clock) -> Faults:
    return Faults(clock)


def codes(faults: Faults, action: str, calls: int) -> list[str | None]:
    answers = (faults.before(action) for _ in range(calls))
    return [a.code if a else "" for a in answers]


# -- throttling ---------------------------------------------------------------------------


def test_a_bucket_gives_its_capacity_and_then_refuses_with_503(faults):
    faults.set(throttle={"DescribeSubnets": [3, 1]})
    assert codes(faults, "DescribeSubnets", 3) == ["", "", ""]
    refused = faults.before("DescribeSubnets")
    assert refused
    assert (refused.code, refused.status) == ("RequestLimitExceeded", 503)


def test_a_bucket_refills_with_time_but_never_above_its_capacity(faults, clock):
    faults.set(throttle={"DescribeSubnets": [2, 0.5]})
    codes(faults, "DescribeSubnets", 2)
    clock.now_s += 1
    assert codes(faults, "DescribeSubnets", 1) == ["RequestLimitExceeded"], "half a token is none"
    clock.now_s += 1
    assert codes(faults, "DescribeSubnets", 2) == ["", "RequestLimitExceeded"]
    clock.now_s += 1000
    assert codes(faults, "DescribeSubnets", 3) == ["", "", "RequestLimitExceeded"]


def test_an_actions_bucket_is_its_own_and_the_common_one_is_everybodys(faults):
    faults.set(throttle={"DescribeSubnets": [1, 0]})
    codes(faults, "DescribeSubnets", 1)
    assert codes(faults, "DescribeVpcs", 3) == ["", "", ""]
    faults.set(throttle={"*": [2, 0]})
    assert codes(faults, "DescribeSubnets", 1) == [""]
    assert codes(faults, "DescribeVpcs", 2) == ["", "RequestLimitExceeded"]


def test_a_bucket_of_nothing_refuses_from_the_first_call(faults):
    faults.set(throttle={"*": [0, 0]})
    assert codes(faults, "DescribeVpcs", 2) == ["RequestLimitExceeded"] * 2


# -- errors and denials -------------------------------------------------------------------


def test_an_error_is_given_so_often_and_to_its_action_only(faults):
    faults.set(errors=[{"action": "CreateTags", "code": "InternalError", "count": 2}])
    assert codes(faults, "DescribeVpcs", 1) == [""]
    assert codes(faults, "CreateTags", 3) == ["InternalError", "InternalError", ""]


def test_errors_of_one_action_follow_one_another(faults):
    errors = [{"action": "CreateTags", "code": code} for code in ("First", "Second")]
    faults.set(errors=errors)
    assert codes(faults, "CreateTags", 3) == ["First", "Second", ""]


def test_an_error_after_the_effect_does_not_stop_the_effect(faults):
    faults.set(errors=[{"action": "CreateTags", "code": "InternalError", "when": "after"}])
    assert faults.before("CreateTags") is None
    assert faults.after("DescribeVpcs") is None
    after = faults.after("CreateTags")
    assert after
    assert after.code == "InternalError"
    assert faults.after("CreateTags") is None


def test_an_error_before_the_effect_is_not_given_after_it(faults):
    faults.set(errors=[{"action": "CreateTags", "code": "InternalError"}])
    assert faults.after("CreateTags") is None
    assert codes(faults, "CreateTags", 1) == ["InternalError"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_without_a_code_the_connection_drops(faults, when):
    faults.set(errors=[{"action": "CreateTags", "code": None, "when": when}])
    injected = getattr(faults, when)("CreateTags")
    assert isinstance(injected, Injected)
    assert injected.code is None


def test_a_denied_action_takes_no_token_and_stays_denied(faults):
    faults.set(denied=["CreateTags"], throttle={"*": [1, 0]})
    for _ in range(3):
        denied = faults.before("CreateTags")
        assert denied
        assert (denied.code, denied.status) == ("UnauthorizedOperation", 403)
    assert codes(faults, "DescribeVpcs", 1) == [""]


# -- counts -------------------------------------------------------------------------------


def test_calls_are_counted_with_the_refused_ones_among_them(faults):
    faults.set(denied=["CreateTags"], throttle={"DescribeVpcs": [1, 0]})
    codes(faults, "CreateTags", 2)
    codes(faults, "DescribeVpcs", 3)
    codes(faults, "DescribeSubnets", 1)
    assert faults.calls() == {"CreateTags": 2, "DescribeVpcs": 3, "DescribeSubnets": 1}
    assert faults.failed() == {"CreateTags": 2, "DescribeVpcs": 2}
    faults.reset_calls()
    assert (faults.calls(), faults.failed()) == ({}, {})


def test_throttled_calls_are_counted_apart_from_those_that_fail_otherwise(faults):
    error = {"action": "CreateVpc", "code": "InternalError", "when": "after"}
    limited = {"action": "DeleteVpc", "code": "RequestLimitExceeded"}
    faults.set(denied=["CreateTags"], throttle={"DescribeVpcs": [1, 0]}, errors=[error, limited])
    codes(faults, "CreateTags", 2)
    codes(faults, "DescribeVpcs", 3)
    codes(faults, "DeleteVpc", 2)
    faults.after("CreateVpc")
    assert faults.throttled() == {"DescribeVpcs": 2, "DeleteVpc": 1}, "whoever said so"
    assert faults.failed() == faults.throttled() | {"CreateTags": 2, "CreateVpc": 1}
    faults.reset_calls()
    assert faults.throttled() == {}


def test_what_is_returned_is_a_copy(faults):
    faults.before("CreateTags")
    faults.calls()["CreateTags"] = 99
    faults.snapshot()["denied"] = ["CreateTags"]
    assert faults.calls() == {"CreateTags": 1}
    assert codes(faults, "CreateTags", 1) == [""]


def test_no_call_is_lost_between_threads(faults):
    """A bucket without refill gives its tokens once, whoever asks."""
    faults.set(throttle={"*": [500, 0]})
    answers: list[str | None] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        answers.extend(codes(faults, "DescribeVpcs", 200))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count("") == 500
    assert faults.calls() == {"DescribeVpcs": 1600}
    assert faults.failed() == {"DescribeVpcs": 1100}


# -- setting ------------------------------------------------------------------------------


def test_setting_one_switch_leaves_the_others(faults):
    faults.set(denied=["CreateTags"])
    faults.set(attachDelaySeconds=2.5)
    assert faults.get("denied") == ["CreateTags"]
    assert faults.get("attachDelaySeconds") == 2.5


def test_clearing_puts_every_switch_to_rest_and_fills_the_buckets(faults):
    switches = {
        "throttle": {"*": [1, 0]},
        "errors": [{"action": "CreateTags", "code": "InternalError"}],
        "denied": ["DescribeVpcs"],
        "policy": [],
        "attachDelaySeconds": 1.0,
        "detachDelaySeconds": 1.0,
        "staleEc2Seconds": 1.0,
        "staleImdsSeconds": 1.0,
        "truncateEc2": 1,
        "truncateImds": 1,
        "emptyImds": True,
        "hostileImds": "slow",
        "hostileEc2": "fields",
        "emptyEc2": ["DescribeRouteTables"],
        "shortEc2": ["DescribeRouteTables"],
    }
    assert switches.keys() == SWITCHES.keys()
    faults.set(**switches)
    codes(faults, "DescribeSubnets", 2)
    faults.clear()
    assert faults.snapshot() == SWITCHES
    assert codes(faults, "DescribeVpcs", 3) == ["", "", ""]
    faults.set(throttle={"*": [1, 0]})
    assert codes(faults, "DescribeSubnets", 1) == [""]


def test_switches_survive_the_way_over_the_control_socket(faults):
    faults.set(throttle={"*": [1, 0.5]}, errors=[{"action": "CreateTags", "code": None}])
    again = Faults()
    again.set(**json.loads(json.dumps(faults.snapshot())))
    assert again.snapshot() == faults.snapshot()


def test_an_unknown_switch_changes_nothing_not_even_the_known_ones_beside_it(faults):
    with pytest.raises(ValueError, match="no such switch: latency"):
        faults.set(latency=3, denied=["CreateTags"])
    assert faults.snapshot() == SWITCHES
