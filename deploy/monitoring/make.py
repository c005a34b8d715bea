"""Writes what is made here: ``python deploy/monitoring/make.py``.

``prometheusrule.yaml`` is ``alerts.yaml`` as an object of the Prometheus operator;
``dashboard.json`` is a dashboard for Grafana, of the panels below.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8
"""Of Grafana's grid: a whole row, and of a panel."""

NODES = 'instance=~"$instance"'


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        queries: each with the legend of its series.
        unit: Grafana's word.
        width: of ``WIDTH``.
        about: shown beside the title.
        stacked: whether series are shown on top of each other.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    width: int = 8
    about: str = ""
    kind: str = "timeseries"
    stacked: bool = False


def _quantiles(metric: str, by: str, *matching: str) -> tuple[tuple[str, str], ...]:
    """Ask for the median and the slowest hundredth of a histogram, by a label."""
    told = ", ".join((NODES, *matching))
    rate = f"sum by (le, {by}) (rate({metric}_bucket{{{told}}}[$__rate_interval]))"
    return tuple(
        (f"histogram_quantile({q}, {rate})", f"{{{{{by}}}}} p{100 * q:.0f}") for q in (0.5, 0.99)
    )


ROWS: dict[str, tuple[Panel, ...]] = {
    "At a glance": (
        Panel(
            "Nodes where no pod can start",
            ((f"sum(node_network_ready{{{NODES}}} == bool 0)", ""),),
            width=4,
            kind="stat",
        ),
        Panel("Pods", ((f"sum(node_network_pods{{{NODES}}})", ""),), width=4, kind="stat"),
        Panel(
            "Addresses left",
            ((f"sum(node_network_pool_addresses_left{{{NODES}}})", ""),),
            width=4,
            kind="stat",
            about="Held and not used, or to be had within limits and subnets.",
        ),
        Panel(
            "First node without addresses, in",
            ((f"min(node_network_pool_exhaustion_seconds{{{NODES}}})", ""),),
            "s",
            width=4,
            kind="stat",
            about="At the rate of the last 15 minutes.",
        ),
        Panel(
            "Documents refused",
            ((f"sum(node_network_document_refused{{{NODES}}})", ""),),
            width=4,
            kind="stat",
        ),
        Panel(
            "Versions",
            ((f"count by (version) (node_network_build_info{{{NODES}}})", "{{version}}"),),
            width=4,
            kind="stat",
        ),
    ),
    "What is wrong": (
        Panel(
            "Conditions",
            (
                (
                    f"sum by (domain, reason) (node_network_conditions{{{NODES}}})",
                    "{{domain}} {{reason}}",
                ),
            ),
            width=12,
            about="docs/reference/conditions.md has a paragraph for each reason.",
        ),
        Panel(
            "ADDs refused, by reason",
            (
                (
                    "sum by (result) (increase(node_network_cni_requests_total"
                    f'{{{NODES}, verb="add", result!="ok"}}[$__rate_interval]))',
                    "{{result}}",
                ),
                (
                    f"sum by (reason) (node_network_pods_waiting{{{NODES}}})",
                    "waiting now: {{reason}}",
                ),
            ),
            width=12,
        ),
    ),
    "Pods": (
        Panel(
            "Time to a pod's network",
            _quantiles("node_network_cni_request_seconds", "verb", 'result="ok"'),
            "s",
        ),
        Panel(
            "Phases of an ADD",
            _quantiles("node_network_cni_add_phase_seconds", "phase"),
            "s",
            about="Until the pass began, of the pass, to tell the runtime.",
        ),
        Panel(
            "Requests of the CNI executable",
            (
                (
                    f"sum by (verb) (rate(node_network_cni_requests_total{{{NODES}}}"
                    "[$__rate_interval]))",
                    "{{verb}}",
                ),
            ),
            "reqps",
        ),
    ),
    "Addresses": (
        Panel(
            "Addresses by state",
            ((f"sum by (state) (node_network_addresses{{{NODES}}})", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Pool, target and limit of a node",
            (
                (f"sum by (instance) (node_network_addresses{{{NODES}}})", "held {{instance}}"),
                (
                    f'node_network_pool_target_addresses{{{NODES}, bound="aim"}}',
                    "aim {{instance}}",
                ),
                (f"node_network_address_limit{{{NODES}}}", "limit {{instance}}"),
            ),
        ),
        Panel(
            "Time until addresses are used up",
            ((f"node_network_pool_exhaustion_seconds{{{NODES}}} < Inf", "{{instance}}"),),
            "s",
        ),
        Panel(
            "Free addresses of subnets",
            ((f"min by (subnet) (node_network_subnet_free_addresses{{{NODES}}})", "{{subnet}}"),),
        ),
        Panel(
            "Addresses by ENI",
            ((f"sum by (eni, state) (node_network_addresses{{{NODES}}})", "{{eni}} {{state}}"),),
            stacked=True,
            about="Choose one node.",
        ),
        Panel(
            "ENIs and their limit",
            (
                (
                    f"sum by (owner, status) (node_network_enis{{{NODES}}})",
                    "{{owner}} {{status}}",
                ),
                (f"sum(node_network_eni_limit{{{NODES}}})", "limit"),
            ),
        ),
    ),
    "EC2": (
        Panel(
            "Calls by outcome",
            (
                (
                    f"sum by (action, outcome) (increase(node_network_ec2_calls_total{{{NODES}}}"
                    "[$__rate_interval]))",
                    "{{action}} {{outcome}}",
                ),
            ),
        ),
        Panel("Duration of calls", _quantiles("node_network_ec2_call_seconds", "action"), "s"),
        Panel(
            "Least budget left, and age of the last look",
            (
                (f"min by (action) (node_network_ec2_budget_calls{{{NODES}}})", "{{action}}"),
                (
                    f"max by (of) (time() - node_network_look_timestamp_seconds{{{NODES}}})",
                    "seconds since a look at {{of}}",
                ),
            ),
        ),
    ),
    "Other owners, and the reconciler": (
        Panel(
            "Repaired drift",
            (
                (
                    "sum by (domain, kind) (increase(node_network_drift_repaired_total"
                    f"{{{NODES}}}[$__rate_interval]))",
                    "{{domain}} {{kind}}",
                ),
            ),
        ),
        Panel(
            "Packets refused",
            (
                (
                    f"sum by (reason) (rate(node_network_packets_refused_total{{{NODES}}}"
                    "[$__rate_interval]))",
                    "{{reason}}",
                ),
            ),
            "pps",
        ),
        Panel("Passes", _quantiles("node_network_pass_seconds", "pass"), "s"),
        Panel(
            "CPU",
            (
                (
                    "sum by (instance) (rate(process_cpu_seconds_total"
                    f'{{{NODES}, job=~"(.+/)?node-network"}}[$__rate_interval]))',
                    "{{instance}}",
                ),
            ),
            about="In cores; of the reconciler, not of the process that calls EC2.",
        ),
        Panel(
            "Memory",
            (
                (
                    f'process_resident_memory_bytes{{{NODES}, job=~"(.+/)?node-network"}}',
                    "{{instance}}",
                ),
            ),
            "bytes",
        ),
        Panel(
            "Internal errors",
            (
                (
                    f"sum by (what) (increase(node_network_internal_errors_total{{{NODES}}}"
                    "[$__rate_interval]))",
                    "{{what}}",
                ),
            ),
        ),
    ),
}


def _panels() -> Iterator[dict[str, Any]]:
    y = number = 0
    for title, panels in ROWS.items():
        number += 1
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}
        y, x = y + 1, 0
        height = HEIGHT // 2 if all(p.kind == "stat" for p in panels) else HEIGHT
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            number += 1
            place = {"x": x, "y": y, "w": panel.width, "h": height}
            yield {"id": number, "gridPos": place} | _panel(panel)
            x += panel.width
        y += height


def _panel(panel: Panel) -> dict[str, Any]:
    is_stat = panel.kind == "stat"
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": SOURCE,
            "expr": query,
            "legendFormat": legend,
            "instant": is_stat,
            "range": not is_stat,
        }
        for place, (query, legend) in enumerate(panel.queries)
    ]
    defaults: dict[str, Any] = {"unit": panel.unit}
    if not is_stat:
        mode = "normal" if panel.stacked else "none"
        defaults["custom"] = {"fillOpacity": 10, "stacking": {"mode": mode, "group": "A"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {} if is_stat else {"tooltip": {"mode": "multi", "sort": "desc"}},
    }


def dashboard() -> str:
    """Return the dashboard, as Grafana imports it."""
    variable = {
        "name": "instance",
        "label": "Node",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": "label_values(node_network_build_info, instance)", "refId": "nodes"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource"}
    body = {
        "uid": "node-network",
        "title": "node-network",
        "description": "Pod networking of the nodes: docs/monitoring.md",
        "tags": ["kubernetes", "network"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source | {"query": "prometheus"}, variable]},
        "panels": list(_panels()),
    }
    return json.dumps(body, indent=1) + "\n"


def prometheus_rule() -> str:
    """Return the alerts as an object of the Prometheus operator."""
    lines = (HERE / "alerts.yaml").read_text().splitlines()
    rules = [f"  {line}" if line else "" for line in lines if not line.startswith("#")]
    head = (
        "# Made by make.py from alerts.yaml; edit that. Give it the labels that your Prometheus\n"
        "# selects rules by (ruleSelector), and its namespace.\n"
        "apiVersion: monitoring.coreos.com/v1\n"
        "kind: PrometheusRule\n"
        "metadata:\n"
        "  name: node-network\n"
        "  namespace: kube-system\n"
        "  labels: {app.kubernetes.io/name: node-network}\n"
        "spec:\n"
    )
    return head + "\n".join(rules) + "\n"


FILES = {"dashboard.json": dashboard, "prometheusrule.yaml": prometheus_rule}
"""What makes each file, by its name."""


def main() -> int:
    """Write the files."""
    for name, make in FILES.items():
        (HERE / name).write_text(make())
    return 0


if __name__ == "__main__":
    sys.exit(main())
