"""Metrics: what is counted as it happens, and the formats that Prometheus scrapes.

Names follow Prometheus' conventions: base units, ``_total`` for what only grows. What a scrape
reads from the state of the daemon is in ``gauges``. docs/reference/metrics.md is made of both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry()

PREFIX = "node_network_"

MOST_SERIES = 256
"""Combinations of labels that one metric has at most: a metric never forgets one. What is beyond
is counted together."""

MOST_REASONS = 64
"""Reasons that a domain's failures are counted by: EC2's error codes are among them. All further
ones are counted together."""

OTHER = "other"

INSTALLED = "node_network-*.dist-info"
"""How pip calls what it writes of a package (packaging.python.org, "Recording installed
projects")."""

# They would be a series more for each counter and histogram, which few scrapers read.
disable_created_metrics()  # type: ignore[no-untyped-call]

M = TypeVar("M", bound=MetricWrapperBase)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its name after ``PREFIX``, Prometheus' word for its kind, and its labels."""

    name: str
    kind: str
    about: str
    labels: tuple[str, ...] = ()


COUNTED: list[Family] = []
"""What is counted as it happens."""


class Bounded(Generic[M]):
    """A metric with at most ``MOST_SERIES`` combinations of labels, and one for all further."""

    def __init__(self, metric: M) -> None:
        self.metric = metric
        self._known: set[tuple[str, ...]] = set()

    def labels(self, *values: str) -> M:
        """Return the series of these labels."""
        if values not in self._known:
            if len(self._known) >= MOST_SERIES:
                return self.metric.labels(*(OTHER for _ in values))
            self._known.add(values)
        return self.metric.labels(*values)


def _counter(name: str, about: str, *labels: str) -> Bounded[Counter]:
    COUNTED.append(Family(name, "counter", about, labels))
    return Bounded(Counter(f"{PREFIX}{name}", about, labels, registry=REGISTRY))


def _gauge(name: str, about: str) -> Gauge:
    COUNTED.append(Family(name, "gauge", about))
    return Gauge(f"{PREFIX}{name}", about, registry=REGISTRY)


def _histogram(
    name: str, about: str, *labels: str, bounds_s: tuple[float, ...]
) -> Bounded[Histogram]:
    COUNTED.append(Family(name, "histogram", about, labels))
    made = Histogram(f"{PREFIX}{name}", about, labels, registry=REGISTRY, buckets=bounds_s)
    return Bounded(made)


DRIFT = _counter(
    "drift_repaired",
    "Owned objects that another writer changed or removed, and that were repaired",
    *("domain", "kind", "verb"),
)
ACTIONS = _counter("actions", "Actions planned and carried out", "domain", "kind", "verb")
FAILURES = _counter(
    "failures",
    "Conditions that have begun: observations and actions that failed, and what was refused",
    *("domain", "reason"),
)
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
).metric
PACKETS = _counter(
    "packets_refused",
    "Packets that the ruleset has dropped or refused, since the table was made, by why",
    "reason",
)
DOCUMENT_GENERATION = _gauge(
    "document_generation", "Documents accepted on this node, across restarts"
)
DOCUMENT_REFUSED = _gauge(
    "document_refused", "1 while the file's document is refused, and an earlier one is in force"
)
PASS_SECONDS = _histogram(
    "pass_seconds",
    "Duration of a pass: over some pods, over the node (full, or an audit that looks into every "
    "pod's namespace), over the pool, over the document's sources",
    "pass",
    bounds_s=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
CNI_SECONDS = _histogram(
    "cni_request_seconds",
    "Time from a request of the CNI executable to its answer, by verb, and whether it was granted",
    *("verb", "result"),
    bounds_s=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
CNI_REQUESTS = _counter(
    "cni_requests",
    "Requests of the CNI executable that were answered, by verb and result: ok, or the reason",
    *("verb", "result"),
)
ADD_SECONDS = _histogram(
    "cni_add_phase_seconds",
    "Time that ADDs which succeeded have taken: until the pass that placed their objects began "
    "(wait), of that pass until the objects were seen in place (place), and to tell the runtime "
    "(answer)",
    "phase",
    bounds_s=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)

# CPU seconds, memory, descriptors and start of this process; not of the one that calls EC2.
ProcessCollector(registry=REGISTRY)

_reasons: dict[str, set[str]] = {}


def count_failure(domain: str, reason: str) -> None:
    """Count a failure; called by one thread at a time."""
    known = _reasons.setdefault(domain, set())
    if len(known) < MOST_REASONS:
        known.add(reason)
    FAILURES.labels(domain, reason if reason in known else OTHER).inc()


def count_request(verb: str, result: str, seconds: float) -> None:
    """Count a request of the CNI executable that was answered; ``result``: ok, or the reason."""
    CNI_REQUESTS.labels(verb, result).inc()
    CNI_SECONDS.labels(verb, "ok" if result == "ok" else "failed").observe(seconds)


# -- what is read at each scrape ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Durations:
    """How long something took, each time.

    ``counts``: how many took at most so many seconds as ``bounds_s`` has in the same place, and
    more than the one before it; one more is of those that took longer.
    """

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    seconds: float  # all together


Series = Mapping[tuple[str, ...], float | Durations]
"""Values by their labels' values."""


def bounded(series: Series) -> Series:
    """Return at most ``MOST_SERIES`` values, and the sum of all further ones as ``other``."""
    if len(series) <= MOST_SERIES:
        return series
    kept = dict(sorted(series.items())[:MOST_SERIES])
    rest = [value for labels, value in series.items() if labels not in kept]
    others = sum(value for value in rest if not isinstance(value, Durations))
    return {**kept, tuple(OTHER for _ in next(iter(kept))): others}


def _metric(family: Family, series: Series) -> Metric:
    metric = Metric(f"{PREFIX}{family.name}", family.about, family.kind)
    suffix = "_total" if family.kind == "counter" else ""
    name = f"{PREFIX}{family.name}"
    for values, value in bounded(series).items():
        labels = dict(zip(family.labels, values, strict=True))
        if not isinstance(value, Durations):
            metric.add_sample(f"{name}{suffix}", labels, value)
            continue
        below = list(accumulate(value.counts))
        for bound, count in zip((*value.bounds_s, float("inf")), below, strict=True):
            le = "+Inf" if bound == float("inf") else str(float(bound))
            metric.add_sample(f"{name}_bucket", labels | {"le": le}, count)
        metric.add_sample(f"{name}_sum", labels, value.seconds)
        metric.add_sample(f"{name}_count", labels, below[-1])
    return metric


class _Scrape(Collector):
    def __init__(self, read: Mapping[Family, Series]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        yield from REGISTRY.collect()
        yield from (_metric(family, series) for family, series in self._read.items())


def exposition(read: Mapping[Family, Series] | None = None, accept: str = "") -> str:
    """Return all metrics.

    Args:
        read: of the daemon's state.
        accept: header of the request; OpenMetrics if it names that, or else Prometheus' text.
    """
    encode, _ = choose_encoder(accept)
    return encode(_Scrape(read or {})).decode()


def content_type(accept: str) -> str:
    """Return that of ``exposition``."""
    return choose_encoder(accept)[1]


def of_the_process() -> tuple[Family, ...]:
    """Return what the library tells of this process; its names have no prefix of ours."""
    own = (m for m in REGISTRY.collect() if not m.name.startswith(PREFIX))
    return tuple(Family(m.name, m.type, m.documentation) for m in own)


@cache
def release() -> str:
    """Return this program's version; "unknown" where it runs without having been installed.

    By the name of what pip has written: ``importlib.metadata`` would take a MiB for good.
    """
    found = (p for place in sys.path for p in Path(place).glob(INSTALLED))
    return next((p.stem.partition("-")[2] for p in found), "unknown")
