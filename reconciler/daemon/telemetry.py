"""Counters, in the format that every cluster scrapes."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

REGISTRY = CollectorRegistry()

CONTENT_TYPE = CONTENT_TYPE_LATEST  # of ``exposition``


def _counter(name: str, about: str, *labels: str) -> Counter:
    return Counter(f"node_network_{name}", about, labels, registry=REGISTRY)


DRIFT = _counter(
    "drift_repaired",
    "Owned objects that another writer changed or removed, and that were repaired",
    *("domain", "kind", "verb"),
)
ACTIONS = _counter("actions", "Actions planned and carried out", "domain", "kind", "verb")
FAILURES = _counter("failures", "Observations and actions that failed", "domain", "reason")
INTERNAL_ERRORS = _counter(
    "internal_errors", "What failed in a way that no code expects, each time", "what"
)
CONNECTIONS_CUT = _counter(
    "connections_cut",
    "Connections to this process that were closed before they had their answer",
    *("listener", "why"),
)
LOG_DROPPED = _counter(
    "log_lines_dropped",
    "Lines of the log that were dropped, because those before could not be written",
)
PACKETS = _counter(
    "packets_refused",
    "Packets that the ruleset has dropped or refused, since the table was made, by why",
    "reason",
)
EC2_CALLS = Gauge(
    "node_network_ec2_calls", "EC2 calls since the start", ["action"], registry=REGISTRY
)
ADDRESSES = Gauge("node_network_addresses", "Pod addresses by state", ["state"], registry=REGISTRY)
DOCUMENT_GENERATION = Gauge(
    "node_network_document_generation",
    "Documents accepted on this node, across restarts",
    registry=REGISTRY,
)
DOCUMENT_REFUSED = Gauge(
    "node_network_document_refused",
    "1 while the file's document is refused, and an earlier one is in force",
    registry=REGISTRY,
)
PASS_SECONDS = Histogram(
    "node_network_pass_seconds",
    "Duration of a pass over the node",
    registry=REGISTRY,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)

MOST_REASONS = 64
"""Reasons that a domain's failures are counted by: EC2's error codes are among them. All further
ones are counted together: a metric never forgets a label."""

OTHER = "other"

_reasons: dict[str, set[str]] = {}


def count_failure(domain: str, reason: str) -> None:
    """Count a failure; called by one thread at a time."""
    known = _reasons.setdefault(domain, set())
    if len(known) < MOST_REASONS:
        known.add(reason)
    FAILURES.labels(domain, reason if reason in known else OTHER).inc()


def exposition() -> str:
    """Return all counters in Prometheus' text format."""
    return generate_latest(REGISTRY).decode()
