"""Conditions: named, dated, reasoned facts about the node. Each trouble is kept once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from reconciler.daemon import telemetry
from reconciler.engine.converge import Outcome
from reconciler.engine.finding import Finding
from reconciler.errors import InternalError

log = logging.getLogger(__name__)

MOST_TRACED = 256
"""Distinct failures of which the traceback was logged; beyond that the log would have no end."""

MOST_OF_ONE = 50
"""Conditions that are kept of one domain."""

Condition = dict[str, Any]
"""Subject, reason, text, and since when, as ``status`` prints it."""


class Conditions:
    """What is wrong now, by domain; may be asked and told by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Condition]] = {}
        self._traced: set[tuple[str, str]] = set()

    def report(self, domain: str, outcome: Outcome, *, is_logged: bool = False) -> None:
        """Take over a domain's troubles; log when one comes and when it goes.

        Args:
            domain: whose troubles.
            outcome: all of them.
            is_logged: what they say is in the log already.
        """
        for error in outcome.errors:
            surprise = error if isinstance(error, InternalError) else error.__cause__
            if isinstance(surprise, InternalError):
                self.trace(surprise)
        self._take(domain, dict(_troubles(outcome)), is_logged=is_logged)

    def trace(self, error: InternalError) -> None:
        """Count a failure that no code expects; log its traceback, once for each distinct one."""
        telemetry.INTERNAL_ERRORS.labels(error.what).inc()
        distinct = error.what, error.place
        with self._lock:
            if distinct in self._traced or len(self._traced) >= MOST_TRACED:
                return
            self._traced.add(distinct)
        log.error("internal error in %s; its traceback, once:\n%s", error.what, error.trace)

    def note(self, domain: str, findings: Iterable[Finding]) -> None:
        """Take over what was found of other owners; likewise."""
        self._take(
            domain,
            {
                f"{f.subject}/{f.reason}": {
                    "subject": f.subject,
                    "reason": f.reason,
                    "text": f.message,
                }
                for f in findings
            },
        )

    def _take(
        self, domain: str, current: dict[str, Condition], *, is_logged: bool = False
    ) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        current = _bounded(current)
        with self._lock:
            known = self._known.get(domain, {})
            for key in known.keys() - current.keys():
                log.info("condition ended", extra={"domain": domain, **known[key]})
            for key, body in current.items():
                if key not in known:
                    telemetry.count_failure(domain, str(body["reason"]))
                    shown = {k: v for k, v in body.items() if k != "text" or not is_logged}
                    log.warning("condition began", extra={"domain": domain, **shown})
                body["since"] = known.get(key, {}).get("since", now)
            self._known[domain] = current

    def all(self, *, besides: Collection[str] = ()) -> list[Condition]:
        """Return every condition, by subject; those of some domains are left out."""
        with self._lock:
            found = [
                c
                for domain, conditions in self._known.items()
                if domain not in besides
                for c in conditions.values()
            ]
        return sorted(found, key=lambda c: str(c["subject"]))

    def texts(self, domain: str) -> list[str]:
        """Return what is wrong with one domain, each with its reason."""
        with self._lock:
            return [f"{c['reason']}: {c['text']}" for c in self._known.get(domain, {}).values()]


def _troubles(outcome: Outcome) -> Iterator[tuple[str, Condition]]:
    for refusal in outcome.remaining.refusals:
        body = {"subject": refusal.subject, "reason": refusal.reason, "text": refusal.message}
        yield f"{refusal.subject}/{refusal.reason}", body
    for error in outcome.errors:
        reason = getattr(error, "reason", type(error).__name__.removesuffix("Error"))
        subject = getattr(error, "action", getattr(error, "what", "node"))
        yield f"{subject}/{reason}", {"subject": subject, "reason": reason, "text": str(error)}


def _bounded(current: dict[str, Condition]) -> dict[str, Condition]:
    """Keep the first ones, and say how many there are more.

    A transaction of ten thousand actions that is refused is as many troubles.
    """
    if len(current) <= MOST_OF_ONE:
        return current
    kept = dict(islice(current.items(), MOST_OF_ONE))
    body = {
        "subject": "conditions",
        "reason": "MoreOfThem",
        "text": f"{len(current) - MOST_OF_ONE} more, not listed; "
        "those that are listed come first in the plan, so start with them",
    }
    return kept | {"conditions/MoreOfThem": body}
