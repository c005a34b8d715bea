"""When EC2 is observed again.

All nodes of an account share its request limits. So EC2 is not asked for what metadata, the
kernel's notifications or EC2's own answers show, and a change of demand is planned on the last
observation.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from reconciler.core.datapath import IpNetwork
from reconciler.engine.backoff import Delays
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.release import unit_networks
from reconciler.ipam.sources import CONFIRM_S

CHANGING = {"attaching", "detaching", "pending"}
"""EC2's words for an attachment that is about to change by itself."""

CHANGE_S = Delays(5.0)
"""Until EC2 is asked whether an attachment has changed: it takes EC2 one to ten seconds, and the
link that comes or goes tells it before."""

STEP_S = Delays(1.0)
"""Until a plan that is not done yet goes on."""

CHECK_S = 30.0
"""Seconds after which an observation must show what EC2 has answered: well within ``TRUST_S``, and
late enough for one observation to cover a whole burst of pods."""

DISAGREEING_S = 300.0
"""Longest time in seconds between observations while EC2 and metadata differ, or a subnet has no
room: no notification is certain to end that."""

WAITING_S = 60.0
"""Longest time in seconds between observations while pods wait for room in a subnet."""

UNFINISHED_S = 30.0
"""Seconds between plans, without an observation, while an address or an ENI waits for its time to
go."""


@dataclass(frozen=True, slots=True)
class Left:
    """What the last observation has left open.

    Attributes:
        changing: an attachment changes by itself, or its link has yet to come or go.
        times: observations in a row after which either was so, or that led to calls.
        behind: EC2 has answered what no observation has shown yet.
        late: the observation lacks what EC2 had answered before it; it may be a short list.
        missing: EC2 no longer shows something since moments ago; the next observation may confirm
            it.
        short: a subnet has no room for addresses that the pool lacks.
        waiting: pods wait for them.
    """

    unfinished: bool = False
    changing: bool = False
    times: int = 0
    behind: bool = False
    late: bool = False
    missing: bool = False
    disagreeing: bool = False
    short: bool = False
    waiting: bool = False


def observe_after_s(left: Left, resync_s: float) -> float:
    """Return how many seconds after the last observation the next one is due.

    ``resync_s``: the document's ``reconcile.ec2Resync``.
    """
    waits = [
        resync_s,
        plan_after_s(left) if left.unfinished else resync_s,
        CHANGE_S.after(max(left.times, 1)) if left.changing else resync_s,
        CHECK_S if left.behind else resync_s,
        CONFIRM_S if left.missing else resync_s,
        DISAGREEING_S if left.disagreeing or left.short else resync_s,
        WAITING_S if left.short and left.waiting else resync_s,
    ]
    return min(waits)


def plan_after_s(left: Left) -> float:
    """Return how many seconds after calls the next plan is made, without an observation."""
    return STEP_S.after(max(left.times, 1))


def is_changing(cloud: Cloud, macs: Container[str]) -> bool:
    """Whether an attachment of ours changes by itself, or its link has yet to come.

    ``macs``: of the links that are on the node.
    """
    return any(
        e.status in CHANGING or (e.serves_pods and e.mac not in macs)
        for e in cloud.enis
        if e.owned
    )


def held_by_mac(cloud: Cloud, status: str = "attached") -> frozenset[tuple[str, IpNetwork]]:
    """Return what EC2 shows on this instance in the form of instance metadata.

    Metadata lists every interface of any owner once its attachment is done.
    """
    here = (e for e in cloud.enis if e.status == status)
    return frozenset((e.mac, n) for e in here for n in unit_networks(e))
