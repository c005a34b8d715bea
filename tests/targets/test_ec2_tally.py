"""What is counted of EC2's calls."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.ipam import budget
from reconciler.ipam.budget import BUCKETS
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import Calls
from reconciler.targets.ec2.tally import BOUNDS_S, Tally

ACTION, METHOD = "AttachNetworkInterface", "attach_network_interface"


class Ec2:
    """Answers after some time, or refuses."""

    def __init__(self) -> None:
        self.now, self.takes_s, self.code = 0.0, 0.0, ""

    def __call__(self, action: str, method: str, arguments: dict[str, Any]) -> Any:
        self.now += self.takes_s
        if self.code:
            raise Ec2CallError(action, self.code, "no", refused=True)
        return {}


def test_each_call_is_counted_by_how_it_went_and_how_long_it_took() -> None:
    ec2, tally = Ec2(), Tally()
    calls = Calls(ec2, lambda: ec2.now, tally)
    for takes_s, code in (
        (0.05, ""),
        (0.3, ""),
        (99.0, "AnswerLost"),
        (0.2, "RequestLimitExceeded"),
        (0.2, "UnauthorizedOperation"),
        (0.2, "InvalidSubnetID.NotFound"),
        (0.2, "SomethingNew"),
    ):
        ec2.takes_s, ec2.code = takes_s, code
        if code:
            with pytest.raises(Ec2CallError, match=code):
                calls(METHOD)
        else:
            calls(METHOD)
    counted = tally.all()[ACTION]
    assert counted.outcomes == {
        "ok": 2,
        "answer lost": 1,
        "throttled": 1,
        "denied": 1,
        "not found": 1,
        "failed": 1,
    }
    assert dict(zip((*BOUNDS_S, "more"), counted.took, strict=True)) == {
        **dict.fromkeys(BOUNDS_S, 0),
        0.05: 1,
        0.25: 4,
        0.5: 1,
        "more": 1,
    }
    assert counted.seconds == pytest.approx(0.05 + 0.3 + 99.0 + 4 * 0.2)


def test_what_the_nodes_own_budget_holds_back_is_counted_apart_and_fills_again() -> None:
    ec2, tally = Ec2(), Tally()
    calls = Calls(ec2, lambda: ec2.now, tally)
    capacity, refill = BUCKETS[ACTION]
    for _ in range(int(capacity)):
        calls(METHOD)
    with pytest.raises(Ec2CallError, match="budget"):
        calls(METHOD)
    counted = tally.all()[ACTION]
    assert counted.outcomes == {"ok": capacity, "held back": 1}
    assert sum(counted.took) == capacity
    assert budget.left(counted.bucket, ACTION, ec2.now) == 0
    assert budget.left(counted.bucket, ACTION, ec2.now + 2) == 2 * refill
    assert budget.left(counted.bucket, ACTION, ec2.now + 1e6) == capacity
