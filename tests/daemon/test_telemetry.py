"""What is counted, and that labels have a bound."""

from __future__ import annotations

import re

from reconciler.daemon.duty import Conditions
from reconciler.daemon.telemetry import MOST_REASONS, OTHER, exposition
from reconciler.engine.converge import Outcome
from reconciler.errors import ObserveError
from reconciler.ipam.budget import CallBackoffs

CODES = 200


def test_however_many_codes_ec2_invents_the_metric_has_a_bound_and_one_for_all_others() -> None:
    conditions = Conditions()
    for number in range(CODES):
        error = ObserveError("EC2", "it says so", reason=f"Code{number}")
        conditions.report("a domain", Outcome(errors=(error,)))
    counted = re.findall(r'failures_total\{domain="a domain",reason="(.*)"\} (.*)', exposition())
    assert len(counted) == MOST_REASONS + 1
    assert dict(counted)[OTHER] == str(float(CODES - MOST_REASONS))


def test_a_node_whose_subnets_are_ever_others_remembers_those_of_the_last_hour() -> None:
    rests = CallBackoffs()
    for number in range(CODES):
        rests = rests.after_failure(
            f"assign:subnet-{number}", "Unavailable", "", now=number * 60.0, chance=1.0
        )
    assert len(rests.by_scope) < 70
