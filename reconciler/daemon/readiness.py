"""Readiness: what the kernel loop's passes say of the node, and whether pods can start on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from reconciler.daemon.telemetry import FOREIGN_TEXT
from reconciler.engine.issue import Issue
from reconciler.ipam.cloud import Cloud
from reconciler.node.pass_result import PassResult

PATIENCE_S = 30.0
"""Seconds for which passes must fail before STATUS says so: a node that flaps to NotReady has its
pods taken out of every Service, though they run as before."""

HOST_WIDE = ("sysctl", "rule", "nat")
"""Domains without whose objects no pod reaches what is beyond the node, running ones included."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known after the last pass.

    Attributes:
        latest: of what was last observed; None after a full pass that failed.
        generation: of the document that the last full pass worked on.
        failing_since: monotonic seconds since which full passes fail.
        limited_since: monotonic seconds since which a domain of ``HOST_WIDE`` fails.
        has_converged: whether a full pass has ever succeeded.
    """

    latest: PassResult | None = None
    generation: int = 0
    failing_since: float | None = None
    limited_since: float | None = None
    has_converged: bool = False

    def after_failure(self, started: float) -> Progress:
        """After a full pass that failed: what was known is not known any more."""
        return replace(self, latest=None, failing_since=self.failing_since or started)

    def after_observation(self, result: PassResult) -> Progress:
        """After any pass, before its duties are done."""
        if self.latest is None or result.asked is None:
            return replace(self, latest=result)
        return replace(self, latest=replace(self.latest, records=result.records))

    def after_pass(self, result: PassResult, generation: int, started: float) -> Progress:
        """After a whole full pass."""
        limited = any(result.outcomes[name].failed for name in HOST_WIDE)
        since = (self.limited_since or started) if limited else None
        return Progress(result, generation, limited_since=since, has_converged=True)


def find_obstacle(
    progress: Progress, cloud: Cloud | None, texts: Callable[[str], list[str]], now: float
) -> Issue | None:
    """Say why no pod can start on this node; None if they can.

    Exhaustion is none: a node that says it is not ready loses the pods it has.

    Args:
        progress: of the kernel loop.
        cloud: the last observation of EC2.
        texts: a domain's conditions.
        now: monotonic seconds.
    """

    def causes(instead: str, of: Iterable[str] = ("node", "eni")) -> str:
        return ("; ".join(t for name in of for t in texts(name)) or instead)[: FOREIGN_TEXT * 2]

    if cloud is None or not cloud.enis:
        return Issue("node", "NotAvailable", causes("no ENI is known yet"))
    failing, limited = progress.failing_since, progress.limited_since
    if failing is not None and (not progress.has_converged or now - failing > PATIENCE_S):
        return Issue("node", "NotAvailable", causes("no pass succeeds"))
    if limited is not None and now - limited > PATIENCE_S:
        return Issue("node", "Limited", causes("rules or settings are missing", HOST_WIDE))
    return None
