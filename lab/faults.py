"""Switches that make EC2 and IMDS misbehave, as they do in production.

All of them are plain data, so that they can be set over the lab's control socket.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SWITCHES: dict[str, Any] = {
    "throttle": {},
    "errors": [],
    "denied": [],
    "policy": None,
    "attachDelaySeconds": 0.0,
    "detachDelaySeconds": 0.0,
    "staleEc2Seconds": 0.0,
    "staleImdsSeconds": 0.0,
    "truncateEc2": None,
    "truncateImds": None,
    "emptyImds": False,
    "hostileImds": "",
    "hostileEc2": "",
    "emptyEc2": [],
    "shortEc2": [],
}
"""Every switch with its resting value.

* ``throttle``: token buckets by action, or "*" for all together: [capacity, refill per second].
* ``errors``: {"action", "code", "message", "count", "when"}; ``when`` is "before" or "after" the
  effect; code null after the effect drops the connection: the call happened, its answer is lost.
* ``denied``: actions answered UnauthorizedOperation.
* ``policy``: statements of IAM policies; what none of them allows is answered the same. Null: all
  is allowed. It holds for everybody who calls.
* ``staleEc2Seconds``, ``staleImdsSeconds``: describe answers are that old.
* ``truncateEc2``: DescribeNetworkInterfaces lists the primary address and so many of the others
  of an ENI, and so many of its prefixes, of IPv6 as of IPv4; filters still see all.
* ``truncateImds``: lists of addresses end after so many entries, the primary among them.
* ``emptyImds``: metadata tells of the instance, and of no interface.
* ``hostileImds``: metadata's answers are "endless", or "slow": a byte a second; or "headers": have
  more of them than anything reads.
* ``hostileEc2``: DescribeNetworkInterfaces answers "fields" that hold what they cannot; "endless":
  a full page, and always one more; or "flood": a body without an end.
* ``emptyEc2``: actions that list nothing: those on peerings, route tables and prefix lists.
* ``shortEc2``: of the same, actions that leave out the last that they should list.
"""

THROTTLED = "RequestLimitExceeded"


@dataclass(frozen=True, slots=True)
class Injected:
    """What a call gets instead of its answer; ``code`` None: the connection drops."""

    code: str | None
    message: str
    status: int = 400


class Faults:
    """The switches of one lab, and the count of what was called."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._switches: dict[str, Any] = {}
        self._buckets: dict[str, tuple[float, float]] = {}
        self._calls: Counter[str] = Counter()
        self._callers: Counter[tuple[str, str]] = Counter()
        self._failed: Counter[str] = Counter()
        self._throttled: Counter[str] = Counter()
        self.clear()

    def clear(self) -> None:
        """Put every switch to rest."""
        with self._lock:
            self._switches = {
                k: list(v) if isinstance(v, list) else v for k, v in SWITCHES.items()
            }
            self._buckets.clear()

    def set(self, **switches: Any) -> None:
        """Set some switches, leave the others.

        Raises:
            ValueError: a switch has another name.
        """
        unknown = switches.keys() - SWITCHES.keys()
        if unknown:
            raise ValueError(f"no such switch: {', '.join(sorted(unknown))}")
        with self._lock:
            self._switches |= switches
            self._buckets.clear()

    def get(self, switch: str) -> Any:
        """Return one switch's value."""
        with self._lock:
            return self._switches[switch]

    def snapshot(self) -> dict[str, Any]:
        """Return all switches."""
        with self._lock:
            return dict(self._switches)

    def calls(self) -> dict[str, int]:
        """Return calls by action, refused ones included."""
        with self._lock:
            return dict(self._calls)

    def callers(self) -> dict[str, dict[str, int]]:
        """Return calls by the address that they came from, each by action."""
        with self._lock:
            found: dict[str, dict[str, int]] = {}
            for (caller, action), count in self._callers.items():
                found.setdefault(caller, {})[action] = count
            return found

    def failed(self) -> dict[str, int]:
        """Return calls that a switch made fail, by action."""
        with self._lock:
            return dict(self._failed)

    def throttled(self) -> dict[str, int]:
        """Return those of the failed calls that were answered RequestLimitExceeded, by action."""
        with self._lock:
            return dict(self._throttled)

    def reset_calls(self) -> None:
        """Count from nothing."""
        with self._lock:
            self._calls.clear()
            self._callers.clear()
            self._failed.clear()
            self._throttled.clear()

    def before(self, action: str, caller: str = "") -> Injected | None:
        """Count a call; return what it gets instead of its effect.

        Args:
            action: its name.
            caller: the address that it came from; empty if it came by no connection.
        """
        with self._lock:
            self._calls[action] += 1
            self._callers[caller, action] += 1
            return self._counted(action, self._decide(action))

    def after(self, action: str) -> Injected | None:
        """Return what a call gets although it had its effect."""
        with self._lock:
            return self._counted(action, self._error(action, "after"))

    def _counted(self, action: str, fault: Injected | None) -> Injected | None:
        if fault:
            self._failed[action] += 1
            if fault.code == THROTTLED:
                self._throttled[action] += 1
        return fault

    def _decide(self, action: str) -> Injected | None:
        if action in self._switches["denied"]:
            message = "You are not authorized to perform this operation."
            return Injected("UnauthorizedOperation", message, 403)
        for name in (action, "*"):
            if name in self._switches["throttle"] and not self._take(name):
                return Injected(THROTTLED, "Request limit exceeded.", 503)
        return self._error(action, "before")

    def _take(self, name: str) -> bool:
        """Take a token; False if the bucket is empty."""
        capacity, refill = self._switches["throttle"][name]
        now = self._clock()
        tokens, last = self._buckets.get(name, (float(capacity), now))
        tokens = min(float(capacity), tokens + (now - last) * refill)
        granted = bool(tokens >= 1)
        self._buckets[name] = (tokens - 1 if granted else tokens, now)
        return granted

    def _error(self, action: str, when: str) -> Injected | None:
        for error in self._switches["errors"]:
            if (
                error["action"] == action
                and error.get("when", "before") == when
                and error.get("count", 1) > 0
            ):
                error["count"] = error.get("count", 1) - 1
                code = error.get("code")
                return Injected(code, error.get("message", "injected"), 500 if not code else 400)
        return None
