"""The schedule of the kernel loop's passes, and what they have for the pool loop: pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil

from reconciler.daemon.requests import QUIET_S
from reconciler.domains.left_out import left_out
from reconciler.engine.backoff import Backoffs
from reconciler.ipam.margin import Margin, within
from reconciler.ipam.pool import Demand
from reconciler.node.pass_result import PassResult
from reconciler.node.visits import SHARE
from reconciler.targets.expected import Verdict

RETRY_S = 1.0  # seconds until the kernel loop looks again when something is left to do

LEFT_OUT_S = 5.0
"""The same when nothing is left to do, but for pods whose data makes a domain raise."""

FULL_PASS_S = 1.0  # seconds that pods coming and going may put off a full pass

MORE_S = 0.05  # seconds until more of what the kernel tells of a link is looked for

PASS_SHARE = 5
"""Full passes that only notifications ask for begin this many durations apart: changes of the
kernel without end take a fifth of a core at most."""

CAN_WAIT = {"kernel", "pool", "cooldown", "files", "others"}
"""Hints whose full pass pods may put off."""

OTHERS_S = 0.25
"""Seconds until what the kernel tells is weighed again after it was about other owners: they may
change without end."""

SLIGHT = {"kernel", "cooldown", "others"}
"""Hints that mostly take no full pass: what the kernel tells is known, or about other owners, and
addresses cool."""

LIGHT = CAN_WAIT | {"intent", "sources"}
"""Hints for which no pod's namespace needs a look, unless something of the pod is new: changes in
there notify no process outside."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What was done when, in monotonic seconds."""

    pods_at: float = float("-inf")  # pods were last served
    full_pass_at: float = float("-inf")  # the last full pass began
    full_pass_s: float = 0.0  # seconds that it took
    wait_s: float = 0.0  # seconds from its beginning until the next, if no hint comes
    audit_at: float = float("-inf")  # the last full pass began that looked into every pod
    share_at: float = float("-inf")  # some pods' namespaces were last looked into
    weighed_at: float = float("-inf")  # notifications were last weighed, and asked for no pass
    undecided_until: float = float("-inf")  # more of the same are waited for

    def after_full_pass(self, began: float, took_s: float, *, audit: bool) -> Schedule:
        """Return what holds once a full pass has ended."""
        if not audit:
            return replace(self, full_pass_s=took_s)
        return replace(self, full_pass_s=took_s, audit_at=began, share_at=began)

    def after_weighing(self, verdict: Verdict, now: float) -> Schedule:
        """Return what holds once notifications were weighed at these monotonic seconds."""
        if verdict is Verdict.NEWS:
            return self
        if verdict is Verdict.UNDECIDED:
            return replace(self, undecided_until=now + MORE_S)
        until = now + OTHERS_S if verdict is Verdict.OTHERS else self.undecided_until
        return replace(self, weighed_at=now, undecided_until=until)


def left_of(hints: frozenset[str], verdict: Verdict) -> frozenset[str]:
    """Return the hints that are left, or follow, once notifications were weighed."""
    if verdict is Verdict.OTHERS:
        return hints - {"kernel"} | {"others"}
    return hints - {"kernel"} if verdict is Verdict.EXPLAINED else hints


def due_s(schedule: Schedule, hints: frozenset[str], now: float, *, is_awaited: bool) -> float:
    """Return seconds until a full pass, 0 or less if it is due, at these monotonic seconds.

    It is at once if an ADD waits for what a pass could not give it (``is_awaited``).
    """
    by_time = schedule.full_pass_at + schedule.wait_s - now
    if not hints:
        return by_time
    if not hints <= CAN_WAIT or is_awaited:
        return min(by_time, 0.0)
    # The kernel notifies us of each pod's links, so every pod brings a hint to observe everything.
    # Pods that wait come first, but not for long. Changes of the kernel without end do not make
    # passes without end.
    last_at = max(schedule.full_pass_at, schedule.weighed_at)
    quiet_at = min(schedule.pods_at + QUIET_S, last_at + FULL_PASS_S)
    idle_until = schedule.full_pass_at + PASS_SHARE * schedule.full_pass_s
    return min(by_time, max(quiet_at, idle_until, schedule.undecided_until) - now)


def is_audit_due(schedule: Schedule, hints: frozenset[str], now: float, resync_s: float) -> bool:
    """Whether a full pass that begins now looks into every pod."""
    return not hints <= LIGHT or now - schedule.audit_at >= 0.9 * resync_s


def share_due_s(schedule: Schedule, pods: int, resync_s: float, now: float) -> float:
    """Return seconds until more pods' namespaces are looked into, so that all are in a resync.

    Infinite if an audit looks into all of them.
    """
    shares = ceil(pods / SHARE)
    return schedule.share_at + resync_s / shares - now if shares > 1 else float("inf")


def next_pass_s(
    result: PassResult, backoffs: Backoffs, ends: Iterable[float], resync_s: float, now: float
) -> float:
    """Return seconds until the next full pass is due without a hint.

    It is when pods' own waits end (monotonic seconds, as ``now``), or after the longest wait,
    which has its jitter already.
    """
    outcomes = result.outcomes.values()
    left = [o.remaining for o in outcomes if not o.settled]
    due_at = [due for plan in left if (due := backoffs.due(plan)) is not None]
    if due_at and not any(plan.actions for plan in left):
        return max(min(due_at) - now, RETRY_S)
    if left_out(result.outcomes) and not any(o.failed or o.undone for o in outcomes):
        return LEFT_OUT_S
    if not result.settled:
        return RETRY_S
    return max(min([resync_s, *(end - now for end in ends)]), 0.05)


@dataclass(frozen=True, slots=True)
class Links:
    """What a pass over the kernel shows of the pool's ENIs."""

    taking_over: bool = False  # whether the node is being taken over from the stock plugin
    linked: frozenset[str] = frozenset()  # attached secondary ENIs of ours that have their link


def hints_of(
    result: PassResult,
    before: Links,
    demand: Demand,
    *,
    planned_for: Demand | None,
    margin: Margin | None,
) -> tuple[frozenset[str], Links]:
    """Say what a pass over the kernel has for the pool's loop, and what it shows of ENIs.

    Compared with what the pass before it has shown, and the demand that was last planned for. A
    demand that makes no difference to the pool (``margin``) is no reason to wake its loop.
    """
    inputs = result.inputs
    taking_over = inputs.host.predecessor.taking_over
    attached = frozenset(e.eni_id for e in inputs.enis if e.owned and e.device_index)
    linked = frozenset(e.eni_id for e in inputs.enis if e.mac in inputs.links) & attached
    told = set()
    if (
        _is_new(demand, planned_for, margin)
        or (taking_over and not before.taking_over)  # ENIs come first
        or linked - before.linked  # an attachment is done
    ):
        told.add("pool")
    if before.linked & attached - linked:
        told.add("look")  # EC2 does not notify of a detached ENI
    return frozenset(told), Links(taking_over, linked)


def _is_new(demand: Demand, planned_for: Demand | None, margin: Margin | None) -> bool:
    """Whether the pool may plan something else for a demand: it may while it plans."""
    return demand != planned_for and (planned_for is None or not within(margin, demand))
