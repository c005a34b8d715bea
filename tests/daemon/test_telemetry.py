"""What is counted, how it is told, and that labels have a bound."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_om
from prometheus_client.parser import text_string_to_metric_families as parse_text

from reconciler.daemon import telemetry
from reconciler.daemon.duty import Conditions
from reconciler.daemon.telemetry import MOST_REASONS, OTHER, Family, exposition
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


def test_a_metric_has_so_many_series_and_one_for_all_further() -> None:
    counter = telemetry.Bounded(Counter("a", "about", ["x", "y"], registry=CollectorRegistry()))
    for number in range(telemetry.MOST_SERIES + 10):
        counter.labels(str(number), "y").inc()
    (family,) = counter.metric.collect()
    values = {tuple(s.labels.values()): s.value for s in family.samples}
    assert len(values) == telemetry.MOST_SERIES + 1
    assert values[OTHER, OTHER] == 10
    series: telemetry.Series = {(str(n),): 2.0 for n in range(telemetry.MOST_SERIES + 10)}
    told = telemetry.bounded(series)
    assert (len(told), told[(OTHER,)]) == (telemetry.MOST_SERIES + 1, 20.0)


def test_what_is_read_is_told_in_the_form_of_its_kind() -> None:
    took = telemetry.Durations((0.1, 1.0), (2, 0, 1), 40.5)
    read: dict[Family, telemetry.Series] = {
        Family("one", "gauge", "about one"): {(): 1},
        Family("calls", "counter", "about calls", ("action",)): {('a"b',): 3},
        Family("took_seconds", "histogram", "about times", ("action",)): {("a",): took},
        Family("nothing", "gauge", "not known yet", ("x",)): {},
    }
    text = exposition(read)
    assert text.endswith("""\
# HELP node_network_one about one
# TYPE node_network_one gauge
node_network_one 1.0
# HELP node_network_calls_total about calls
# TYPE node_network_calls_total counter
node_network_calls_total{action="a\\"b"} 3.0
# HELP node_network_took_seconds about times
# TYPE node_network_took_seconds histogram
node_network_took_seconds_bucket{action="a",le="0.1"} 2.0
node_network_took_seconds_bucket{action="a",le="1.0"} 2.0
node_network_took_seconds_bucket{action="a",le="+Inf"} 3.0
node_network_took_seconds_sum{action="a"} 40.5
node_network_took_seconds_count{action="a"} 3.0
# HELP node_network_nothing not known yet
# TYPE node_network_nothing gauge
""")


@pytest.mark.parametrize(
    ("accept", "kind", "end"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", ""),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", ""),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
            "# EOF\n",
        ),
    ],
)
def test_openmetrics_is_told_to_whoever_accepts_it(accept: str, kind: str, end: str) -> None:
    assert telemetry.content_type(accept) == kind
    text = exposition({}, accept)
    assert text.endswith(end)
    assert "_created" not in text
    parse = parse_om if end else parse_text
    names = {family.name for family in parse(text)}
    assert {"process_cpu_seconds", "node_network_cni_request_seconds"} <= names


def test_the_version_is_that_of_what_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert telemetry.release() == version("node-network")
    monkeypatch.setattr(sys, "path", ["/nowhere"])
    assert telemetry.release.__wrapped__() == "unknown"
