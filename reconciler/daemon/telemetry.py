"""Events as key=value lines, and counters in the format every cluster scrapes."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from datetime import UTC, datetime

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from reconciler.errors import FOREIGN_TEXT, ReconcilerError, boundary

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


MOST_WAITING = 1 << 20
"""Bytes of lines that wait while they are not read or the disk is full: some hours of a healthy
node, a second of a failing one."""

AGAIN_S, FLUSH_S = 1.0, 1.0
"""Seconds until it is tried again after a line could not be written, and for which the end of the
process waits for what is not written yet."""

WRITE_BYTES = 4096
"""Bytes that are written at once: a pipe takes as many whole (PIPE_BUF in pipe(7))."""

STDERR = 2


def configure(*, verbose: bool = False) -> None:
    """Send events to stderr, one line each, in a thread of its own."""
    while (unused := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass  # of a process without stderr the next file would get its number, and our lines
    os.close(unused)
    root = logging.getLogger()
    root.handlers[:] = [LogWriter(STDERR)]
    root.setLevel(logging.WARNING)
    logging.getLogger("reconciler").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(capture=True)
    # Python would write to stderr by itself, and wait there.
    sys.unraisablehook = lambda raised: logging.getLogger(__name__).error(
        "an exception outside of any caller: %r in %r", raised.exc_value, raised.object
    )


class LogWriter(logging.Handler):
    """Writes lines in a thread of its own, so that no caller waits.

    If the reader has stopped or the disk is full, lines wait, up to a limit. Lines beyond it are
    dropped and counted, until all that waits is written; the next line says how many.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(KeyValue())
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._bytes = self._dropped = 0
        threading.Thread(target=self._write_on, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, or drop it."""
        try:
            with boundary("a line of the log"):
                text = self.format(record)
        except ReconcilerError as error:
            text = str(error)
        line = f"{text}\n".encode(errors="backslashreplace")
        with self._changed:
            if self._dropped or self._bytes + len(line) > MOST_WAITING:
                self._dropped += 1
                LOG_DROPPED.inc()
                return
            self._waiting.append(line)
            self._bytes += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, but not for long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, FLUSH_S)

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines = b"".join(self._waiting)
                self._waiting.clear()
            self._write(lines)
            with self._changed:
                self._bytes -= len(lines)
                dropped = 0 if self._waiting else self._dropped
                self._dropped -= dropped
                self._changed.notify_all()
            if dropped:
                logging.getLogger(__name__).warning(
                    "lines of this log were dropped, because those before could not be written",
                    extra={"lines": dropped},
                )

    def _write(self, lines: bytes) -> None:
        while lines:
            try:
                lines = lines[os.write(self._descriptor, lines[:WRITE_BYTES]) :]
            except OSError:  # there is no other place to say it
                time.sleep(AGAIN_S)


def exposition() -> str:
    """Return all counters in Prometheus' text format."""
    return generate_latest(REGISTRY).decode()


class KeyValue(logging.Formatter):
    """``2026-01-01T00:00:00Z INFO message key=value ...``; values are quoted when they need it."""

    _standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        given = {k: v for k, v in vars(record).items() if k not in self._standard}
        words = [at.replace("+00:00", "Z"), record.levelname, record.getMessage()]
        line = " ".join([*words, *(f"{key}={_value(value)}" for key, value in given.items())])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _value(value: object) -> str:
    text = str(value)[:FOREIGN_TEXT]
    return json.dumps(text) if not text or any(c in text for c in ' "=\n') else text
