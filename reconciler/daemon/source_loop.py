"""The loop over the document's sources, in a thread of its own: no pod waits for it."""

from __future__ import annotations

import logging
import time

from reconciler.daemon import telemetry
from reconciler.daemon.parts import Parts
from reconciler.daemon.triggers import Triggers
from reconciler.errors import NotReadyError
from reconciler.node.source_pass import SourcePass

log = logging.getLogger(__name__)

ASKING = (
    "asking what sources stand for"  # the duty, as conditions, metrics and the watchdog say it
)

NOT_KNOWN_S = 1.0
"""Seconds until it is tried again while the node's ENIs are not known yet, as after a start."""

LONGEST_S = 60.0
"""Seconds after which the conditions are brought up to date, and ENIs may be in other subnets."""


class SourceLoop:
    """Keeps what is known of the sources up to date.

    Attributes:
        hints: wakes it.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts, node = parts, parts.node
        self._pass = SourcePass(node.state, node.environment, node.known, node.pool)
        self.hints = Triggers()
        self._hints = frozenset({"start"})

    def turn(self) -> None:
        """Ask what is due, and wait until something is."""
        parts, wait_s = self._parts, NOT_KNOWN_S
        with parts.duties.over(ASKING, slow=True):
            if self._run():
                wait_s = min(self._pass.due_s, LONGEST_S)
        self._hints = self.hints.wait(wait_s)
        if self._hints:
            parts.requests.let_pods_go_first()

    def _run(self) -> bool:
        """Run a pass; return whether the node is known."""
        parts, started = self._parts, time.monotonic()
        document = parts.document.current
        try:
            has_news = self._pass.run(document, at_once="retry" in self._hints)
        except NotReadyError:
            return False
        if has_news:
            parts.hints.mark("sources")
            log.info("what sources stand for has changed", extra=_counts(parts))
        parts.conditions.note("egress", sum(self._pass.find_issues(document), ()))
        telemetry.PASS_SECONDS.labels("sources").observe(time.monotonic() - started)
        return True


def _counts(parts: Parts) -> dict[str, int]:
    return {s.name: len(s.entries) for s in parts.node.known.egress.sources}
