"""EC2's request limits: token buckets, and the backoff of failed calls.

All nodes of an account draw from the same buckets, one for each action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from reconciler.engine.backoff import Delays

BUCKETS = {
    "AssignIpv6Addresses": (100.0, 5.0),
    "AssignPrivateIpAddresses": (100.0, 5.0),
    "AttachNetworkInterface": (50.0, 5.0),
    "CreateNetworkInterface": (100.0, 5.0),
    "CreateTags": (100.0, 10.0),
    "DeleteNetworkInterface": (100.0, 5.0),
    "DeleteTags": (100.0, 10.0),
    "DetachNetworkInterface": (50.0, 5.0),
    "ModifyNetworkInterfaceAttribute": (100.0, 5.0),
    "UnassignPrivateIpAddresses": (100.0, 5.0),
}
"""Capacity in calls and refill in calls per second of mutating actions, per account and region.
Source: Amazon EC2 Developer Guide, "Request throttling for the Amazon EC2 API"."""

DESCRIBE_BUCKET = (100.0, 20.0)
"""The same for all others, filtered or paginated. Source as above."""


class Failure(StrEnum):
    """The kind of a failed call; the value is what operators read."""

    THROTTLED = "throttled"
    DENIED = "denied"
    EXHAUSTED = "exhausted"
    LIMIT = "limit reached"
    NOT_FOUND = "not found"
    LOST = "answer lost"
    UNKNOWN_TYPE = "not known"
    OTHER = "failed"


NOT_ALLOWED = {"UnauthorizedOperation", "AccessDenied"}
"""Of the codes that deny, the ones that a change of the role's policy cures."""

CODES = {
    Failure.THROTTLED: {
        *("RequestLimitExceeded", "Throttling", "ThrottlingException", "BudgetExhausted"),
    },
    Failure.DENIED: NOT_ALLOWED | {"AuthFailure", "InvalidClientTokenId", "OptInRequired"},
    Failure.EXHAUSTED: {
        *("InsufficientFreeAddressesInSubnet", "InsufficientCidrBlocks", "InsufficientCapacity"),
    },
    Failure.LIMIT: {
        "AttachmentLimitExceeded",
        "NetworkInterfaceLimitExceeded",
        "PrivateIpAddressLimitExceeded",
    },
    # After these the call may have had its effect.
    Failure.LOST: {
        *("AnswerLost", "InternalError", "InternalFailure", "Unavailable", "ServiceUnavailable"),
    },
    # EC2 does not know an instance type; a region may get it any day.
    Failure.UNKNOWN_TYPE: {"InvalidInstanceType"},
}
"""EC2's error codes."""

BACKOFF_S = {
    Failure.THROTTLED: Delays(1.0, 60.0, jitter=1),
    Failure.DENIED: Delays(30.0, 600.0, jitter=1),
    Failure.EXHAUSTED: Delays(30.0, 120.0, jitter=1),
    Failure.LIMIT: Delays(30.0, 120.0, jitter=1),
    Failure.NOT_FOUND: Delays(1.0, 30.0, jitter=1),
    Failure.LOST: Delays(1.0, 30.0, jitter=1),
    Failure.UNKNOWN_TYPE: Delays(60.0, 3600.0, jitter=1),
    Failure.OTHER: Delays(1.0, 60.0, jitter=1),
}
"""Of a failed action."""

WAITING_S = Delays(5.0, 15.0, jitter=0.5)
"""Of a refused call that grows the pool, while pods wait for addresses: whoever has lifted the
refusal cannot tell us. Some ten calls in two minutes are far below what EC2 allows a single node;
what it throttles keeps its longer backoff."""

GROWTH_CALLS = {
    "AssignIpv6Addresses",
    "AssignPrivateIpAddresses",
    "AttachNetworkInterface",
    "CreateNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
}
"""What pods that wait may be waiting for."""

LIFTED = {Failure.DENIED, Failure.LIMIT}
"""What somebody may lift at any time, by a policy or a quota."""

FORGET_S = 3600.0
"""Seconds after its backoff for which an action's failures in a row are remembered."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket.

    ``at``: when that was so, in monotonic seconds.
    """

    tokens: float
    at: float


def left(bucket: Bucket | None, action: str, now: float) -> float:
    """Return the tokens there are, at these monotonic seconds; None is a bucket of no call yet."""
    capacity, refill = BUCKETS.get(action, DESCRIBE_BUCKET)
    tokens = capacity if bucket is None else bucket.tokens + (now - bucket.at) * refill
    return min(tokens, capacity)


def take(bucket: Bucket | None, action: str, now: float) -> tuple[Bucket, bool]:
    """Take one token; return the bucket, and whether there was one."""
    tokens = left(bucket, action, now)
    granted = tokens >= 1
    return Bucket(tokens - 1 if granted else tokens, now), granted


@dataclass(frozen=True, slots=True)
class CallBackoff:
    """Why an action is not called for now.

    ``until``: monotonic seconds; ``until_waiting``: the same while pods wait for addresses, at
    most ``until``. ``failures``: in a row.
    """

    failure: Failure
    code: str
    message: str
    until: float
    failures: int
    until_waiting: float

    def ends(self, *, waiting: bool) -> float:
        """Return when it ends, in monotonic seconds; ``waiting``: pods wait for addresses."""
        return self.until_waiting if waiting else self.until


@dataclass(frozen=True, slots=True)
class CallBackoffs:
    """Backoff by scope: an EC2 action, or one kind of it in one subnet."""

    by_scope: Mapping[str, CallBackoff] = field(default_factory=dict)

    def of(self, scope: str, now: float, *, waiting: bool = False) -> CallBackoff | None:
        """Return the backoff of a scope; None if it has none.

        ``now``: monotonic seconds. ``waiting``: pods wait for addresses.
        """
        backoff = self.by_scope.get(scope)
        return backoff if backoff is not None and backoff.ends(waiting=waiting) > now else None

    def after_failure(
        self, scope: str, code: str, message: str, *, now: float, chance: float
    ) -> CallBackoffs:
        """Start or double a scope's backoff: exponential, with full jitter.

        ``now``: monotonic seconds. ``chance``: a random number from 0 to 1.
        """
        failure = classify(code)
        known = self.by_scope.get(scope)
        failures = known.failures + 1 if known and known.failure is failure else 1
        until = soon = now + BACKOFF_S[failure].after(failures, chance)
        if scope in GROWTH_CALLS and failure in LIFTED:
            soon = min(until, now + WAITING_S.after(failures, chance))
        backoff = CallBackoff(failure, code, message, until, failures, soon)
        # A subnet that is no longer asked for never succeeds, so its failures end by time.
        others = {k: r for k, r in self.by_scope.items() if r.until > now - FORGET_S}
        return CallBackoffs({**others, scope: backoff})

    def after_success(self, scope: str) -> CallBackoffs:
        return CallBackoffs({k: v for k, v in self.by_scope.items() if k != scope})


def cure(call: str, code: str) -> str:
    """Say what a call needs that the role does not allow; "" of any other failure."""
    if code not in NOT_ALLOWED:
        return ""
    return f"; allow ec2:{call} to the node's role, then run 'node-network retry'"


def classify(code: str) -> Failure:
    """Return the kind of an EC2 error code."""
    kind = Failure.NOT_FOUND if code.endswith(".NotFound") else Failure.OTHER
    return next((failure for failure, codes in CODES.items() if code in codes), kind)
