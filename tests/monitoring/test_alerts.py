"""The alert rules, by promtool: each fires for its fault, after its time, and alone."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from reconciler.daemon import gauges, telemetry
from reconciler.diagnostics.reasons.catalogue import BY_REASON

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
ALERTS, DASHBOARD = MONITORING / "alerts.yaml", MONITORING / "dashboard.json"
MADE = runpy.run_path(str(MONITORING / "make.py"))["FILES"]
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
NAMES = [rule["alert"] for rule in RULES]

NODE = 'job="kube-system/node-network", instance="a"'


def series(name: str, labels: str = "") -> str:
    return f"{name}{{{NODE}{', ' if labels else ''}{labels}}}"


def condition(reason: str, domain: str = "eni") -> str:
    return series("node_network_conditions", f'domain="{domain}", reason="{reason}"')


BOUNDS_S = (0.1, 0.5, 5.0, 10.0, 30.0)


def histogram(name: str, labels: str, took_s: float) -> Mapping[str, str]:
    """One a second, each of which took that long: one of ``BOUNDS_S``."""
    told = [(str(bound), bound >= took_s) for bound in BOUNDS_S] + [("+Inf", True)]
    return {
        series(f"{name}_bucket", f'{labels}, le="{bound}"'): "0+60x100" if within else "0+0x100"
        for bound, within in told
    }


HEALTHY = {
    series("up"): "1+0x100",
    series("node_network_ready"): "1+0x100",
    series("node_network_document_refused"): "0+0x100",
    series("node_network_pool_exhaustion_seconds"): "+Inf",
    series("node_network_look_timestamp_seconds", 'of="ec2"'): "0+60x100",
    series("node_network_log_lines_dropped_total"): "0+0x100",
    series("process_start_time_seconds"): "1000+0x100",
    series("node_network_cni_requests_total", 'verb="add", result="ok"'): "0+9x100",
    series("node_network_cni_requests_total", 'verb="del", result="Withdrawn"'): "0+9x100",
    series("node_network_internal_errors_total", 'what="x"'): "_x100",
    condition("HeldByMode"): "1+0x100",
    **histogram("node_network_cni_request_seconds", 'verb="add", result="ok"', 0.1),
    **histogram("node_network_pass_seconds", 'pass="full"', 0.1),
}
"""Of an hour and forty minutes, a value for each minute."""

FAULTS: Mapping[str, Mapping[str, str]] = {
    "NodeNetworkDown": {series("up"): "0+0x100"},
    "NodeNetworkNotReady": {series("node_network_ready"): "0+0x100"},
    "NodeNetworkPodsRefused": {
        series(
            "node_network_cni_requests_total", 'verb="add", result="AddressesExhausted"'
        ): "0+1x100"
    },
    "NodeNetworkPodsSlow": histogram(
        "node_network_cni_request_seconds", 'verb="add", result="ok"', 30.0
    ),
    "NodeNetworkExhaustionNear": {series("node_network_pool_exhaustion_seconds"): "900+0x100"},
    "NodeNetworkSubnetFull": {condition("SubnetExhausted"): "2+0x100"},
    "NodeNetworkNodeFull": {condition("PoolLimitReached"): "1+0x100"},
    "NodeNetworkEc2Denied": {condition("UnauthorizedOperation"): "1+0x100"},
    "NodeNetworkEc2Throttled": {condition("RequestLimitExceeded"): "1+0x100"},
    "NodeNetworkEc2Unseen": {
        series("node_network_look_timestamp_seconds", 'of="ec2"'): "-7000+0x100"
    },
    "NodeNetworkDocumentRefused": {
        series("node_network_document_refused"): "1+0x100",
        condition("DocumentRefused", "document"): "1+0x100",
    },
    "NodeNetworkFight": {condition("OwnershipFight", "rule"): "1+0x100"},
    "NodeNetworkStuck": {condition("PassStuck", "watchdog"): "1+0x100"},
    "NodeNetworkPassesSlow": histogram("node_network_pass_seconds", 'pass="full"', 5.0),
    # A counter that begins with its first event.
    "NodeNetworkInternalError": {
        series("node_network_internal_errors_total", 'what="x"'): "_x20 1+0x80"
    },
    "NodeNetworkRestarts": {series("process_start_time_seconds"): "1000+600x100"},
    "NodeNetworkLogLost": {series("node_network_log_lines_dropped_total"): "0+1x100"},
    "NodeNetworkCondition": {condition("SocketReplaced", "state directory"): "1+0x100"},
    "": {series("node_network_pool_exhaustion_seconds"): "0+0x100"},  # others say that
}
"""What differs from a healthy node, by the alert that tells of it."""


class Moment(NamedTuple):
    """What fires at a time, in minutes."""

    minute: int
    fires: str


def moments(alert: str) -> Iterator[Moment]:
    """Nothing before its time, the alert alone after it, and to the end."""
    rule = next((r for r in RULES if r["alert"] == alert), {})
    waits = {"h": 60, "m": 1}
    after = re.fullmatch(r"(\d+)([mh])", str(rule.get("for", "0m")))
    assert after
    minutes = int(after[1]) * waits[after[2]]
    if minutes:
        yield Moment(minutes - 1, "")
    yield Moment(minutes + 25, alert)


def scenario(name: str, differs: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name or "healthy",
        "interval": "1m",
        "input_series": [
            {"series": s, "values": v} for s, v in {**HEALTHY, **differs}.items() if v != "+Inf"
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{moment.minute}m",
                "exp_samples": [{"labels": f'{{alertname="{moment.fires}"}}', "value": 1}]
                if moment.fires
                else [],
            }
            for moment in moments(name)
        ],
    }


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )


def test_each_alert_fires_for_its_fault_after_its_time_and_alone(tmp_path: Path) -> None:
    assert {*FAULTS, ""} == {*NAMES, ""}, "a fault for each alert"
    told = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [scenario(name, differs) for name, differs in FAULTS.items()],
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(told, width=10_000))
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stderr + done.stdout


def test_rules_and_templates_can_be_read(tmp_path: Path) -> None:
    done = promtool("check", "rules", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr


FAMILIES = (
    *(f for f in vars(gauges).values() if isinstance(f, telemetry.Family)),
    *telemetry.COUNTED,
    *telemetry.of_the_process(),
)
SUFFIXES = {"counter": ("_total",), "histogram": ("", "_bucket", "_count"), "gauge": ("",)}


def name_of(family: telemetry.Family) -> str:
    is_ours = not family.name.startswith("process_")
    return f"{telemetry.PREFIX}{family.name}" if is_ours else family.name


def exposed() -> set[str]:
    """Names of all series that a node has, and of histograms."""
    return {f"{name_of(f)}{suffix}" for f in FAMILIES for suffix in SUFFIXES[f.kind]}


@pytest.mark.parametrize("file", [ALERTS, DASHBOARD, MONITORING.parents[1] / "docs/monitoring.md"])
def test_what_is_asked_for_is_what_a_node_has(file: Path) -> None:
    named = set(re.findall(r"(?:node_network|process)_[a-z0-9_]+", file.read_text()))
    assert named
    assert named <= exposed()


def test_the_reasons_that_alerts_name_exist_and_each_has_one_alert() -> None:
    expressions = {rule["alert"]: rule["expr"] for rule in RULES}
    last = expressions.pop("NodeNetworkCondition")
    left_out = set(re.findall(r'reason!~"([^"]+)"', last)[0].split("|"))
    told = [
        reason
        for expression in expressions.values()
        for words in re.findall(r'reason=~?"([^"]+)"', expression)
        for reason in words.split("|")
    ]
    assert len(told) == len(set(told))
    others = {"DocumentRefused", "HeldByMode"}  # a metric of its own; asked for by the document
    assert left_out == {*told} | others
    assert left_out <= BY_REASON.keys()


# -- what is made -----------------------------------------------------------------------------


@pytest.mark.parametrize("file", MADE)
def test_what_is_made_is_as_it_would_be_made_now(file: str) -> None:
    told = "run: .venv/bin/python deploy/monitoring/make.py"
    assert (MONITORING / file).read_text() == MADE[file](), told


def test_the_operators_object_has_the_same_rules() -> None:
    made = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    assert (made["kind"], made["spec"]) == ("PrometheusRule", yaml.safe_load(ALERTS.read_text()))


def test_what_the_dashboard_asks_can_be_asked_and_by_labels_that_exist(tmp_path: Path) -> None:
    panels = [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] != "row"]
    asked = [t["expr"].replace("$__rate_interval", "5m") for p in panels for t in p["targets"]]
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(asked)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    for expr in asked:
        named = re.findall(r"by \(([^)]*)\)", expr)
        (family,) = [f for f in FAMILIES if re.search(rf"\b{name_of(f)}(_total|_bucket)?{{", expr)]
        told = {label for words in named for label in words.split(", ")}
        assert told <= {*family.labels, "le", "instance"}, expr


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & taken, panel["title"]
        assert max(x for x, _ in own) < 24
        taken |= own
