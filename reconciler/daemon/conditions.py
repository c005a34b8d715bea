"""Conditions: named, dated, reasoned facts about the node. Each issue is kept once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any

from reconciler.daemon import telemetry
from reconciler.engine.converge import Outcome
from reconciler.engine.issue import Issue, issue_of
from reconciler.errors import InternalError

log = logging.getLogger(__name__)

MOST_TRACED = 256
"""Distinct failures whose traceback is logged; a limit, so that the log has an end."""

MOST_OF_ONE = 50
"""Conditions that are kept of one domain."""

Condition = dict[str, Any]
"""Subject, reason, text, and since when, as ``status`` prints it."""


class Conditions:
    """What is wrong now, by domain; any thread may read and write it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Condition]] = {}
        self._traced: set[tuple[str, str]] = set()

    def report(self, domain: str, outcome: Outcome, *, is_logged: bool = False) -> None:
        """Replace a domain's issues; log each that begins or ends.

        Args:
            domain: whose issues.
            outcome: all of them.
            is_logged: what they say is in the log already.
        """
        for error in outcome.errors:
            surprise = error if isinstance(error, InternalError) else error.__cause__
            if isinstance(surprise, InternalError):
                self.trace(surprise)
        issues = (*outcome.remaining.refusals, *map(issue_of, outcome.errors))
        self._take(domain, issues, is_logged=is_logged)

    def trace(self, error: InternalError) -> None:
        """Count a failure that no code expects; log its traceback, once for each distinct one."""
        telemetry.INTERNAL_ERRORS.labels(error.what).inc()
        distinct = error.what, error.place
        with self._lock:
            if distinct in self._traced or len(self._traced) >= MOST_TRACED:
                return
            self._traced.add(distinct)
        log.error("internal error in %s; its traceback, once:\n%s", error.what, error.trace)

    def note(self, domain: str, findings: Iterable[Issue]) -> None:
        """Replace the findings of a domain, as ``report`` does."""
        self._take(domain, findings)

    def _take(self, domain: str, issues: Iterable[Issue], *, is_logged: bool = False) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        current = {f"{i.subject}/{i.reason}": _condition(i) for i in _bounded(issues)}
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


def _condition(issue: Issue) -> Condition:
    return {"subject": issue.subject, "reason": issue.reason, "text": issue.message}


def _bounded(issues: Iterable[Issue]) -> list[Issue]:
    """Keep the first ones, and say how many there are more.

    A transaction of ten thousand actions that is refused is as many issues.
    """
    distinct = list({(i.subject, i.reason): i for i in issues}.values())
    if len(distinct) <= MOST_OF_ONE:
        return distinct
    message = (
        f"{len(distinct) - MOST_OF_ONE} more, not listed; "
        "those that are listed come first in the plan, so start with them"
    )
    return [*distinct[:MOST_OF_ONE], Issue("conditions", "MoreOfThem", message)]
