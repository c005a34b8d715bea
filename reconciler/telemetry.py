"""Events as key=value lines, and counters in the format every cluster scrapes."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

REGISTRY = CollectorRegistry()

DRIFT = Counter(
    "node_network_drift_repaired",
    "Owned objects that somebody else changed or removed, and that were put right",
    ["domain", "kind", "verb"],
    registry=REGISTRY,
)
ACTIONS = Counter(
    "node_network_actions",
    "Actions planned and carried out",
    ["domain", "kind", "verb"],
    registry=REGISTRY,
)
FAILURES = Counter(
    "node_network_failures",
    "Looks and actions that failed",
    ["domain", "reason"],
    registry=REGISTRY,
)
INTERNAL_ERRORS = Counter(
    "node_network_internal_errors",
    "What failed in a way that no code expects, each time",
    ["what"],
    registry=REGISTRY,
)
EC2_CALLS = Gauge(
    "node_network_ec2_calls",
    "EC2 calls since the start",
    ["action"],
    registry=REGISTRY,
)
ADDRESSES = Gauge(
    "node_network_addresses",
    "Pod addresses by state",
    ["state"],
    registry=REGISTRY,
)
CONNECTIONS_CUT = Counter(
    "node_network_connections_cut",
    "Connections to this process that were closed before they had their answer",
    ["listener", "why"],
    registry=REGISTRY,
)
PASS_SECONDS = Histogram(
    "node_network_pass_seconds",
    "Duration of a pass over the node",
    registry=REGISTRY,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of ``exposition``."""

FOREIGN_TEXT = 256
"""Characters kept of text that others wrote."""


def configure(*, verbose: bool = False) -> None:
    """Send events to stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValue())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("reconciler").setLevel(logging.DEBUG if verbose else logging.INFO)


def exposition() -> str:
    """Return all counters in Prometheus' text format."""
    return generate_latest(REGISTRY).decode()


class KeyValue(logging.Formatter):
    """``2026-01-01T00:00:00Z INFO message key=value ...``; values are quoted when they need it."""

    _standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = [
            f"{key}={_value(value)}"
            for key, value in vars(record).items()
            if key not in self._standard
        ]
        line = " ".join(
            [at.replace("+00:00", "Z"), record.levelname, record.getMessage(), *fields]
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _value(value: object) -> str:
    text = str(value)[:FOREIGN_TEXT]
    return json.dumps(text) if not text or any(c in text for c in ' "=\n') else text
