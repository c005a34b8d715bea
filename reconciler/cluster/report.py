"""What the Node object should say of this node's network, and the requests that make it so.

Pure. What the API server answers is not believed further than ``read_node`` has checked it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from reconciler.errors import Issue

TYPE = "NodeNetworkReady"
"""The condition's type. ``NetworkUnavailable`` belongs to cloud controllers, ``NetworkingReady``
to the EKS node monitoring agent."""

HEARTBEAT_S = 300.0
"""Seconds after which a condition is told again though nothing has changed: as often as kubelet
does (``nodeStatusReportFrequency``)."""

NUMBERS_S = 60.0
"""Seconds between two of them if the status is the same: every write of a Node goes to all that
watch nodes, and with each pod that comes or goes the numbers change, or the reason."""

STARTING = "Starting"
"""Reason while no pass over the node has succeeded, and nothing is known to be wrong."""

PATIENCE_S = 30.0
"""Seconds that a pod may wait before the condition is False: the pool grows meanwhile."""

MOST_TEXT = 512  # characters of a message
MOST_TAINTS = 64  # of a Node that are looked at

IMPORTANT = (
    *("watchdog", "state directory", "node", "eni", "attachment", "document"),
    *("sysctl", "rule", "nat", "link", "address", "neighbour", "route"),
)
"""Domains of conditions, the most important first; all others follow."""

NOT_TOLD = frozenset({"cluster", "pods"})
"""Domains that the cluster is not told of: what hinders the telling itself, and what pods have
done in their own namespaces, which they could do without end."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of the node now.

    Attributes:
        troubles: conditions, each with its domain.
        obstacle: why no pod can start; None if they can.
        has_converged: a pass over the whole node has succeeded.
        in_use: addresses that pods have.
        held: addresses of the node for pods, in use or not.
        waiting: pods that wait for an address, or for their objects.
        waiting_s: seconds for which there has been at least one, all but short gaps: between two
            ADDs of one pod none waits.
    """

    troubles: tuple[tuple[str, Issue], ...] = ()
    obstacle: Issue | None = None
    has_converged: bool = False
    in_use: int = 0
    held: int = 0
    waiting: int = 0
    waiting_s: float = 0.0

    @property
    def can_serve(self) -> bool:
        """Whether pods can be served."""
        return self.has_converged and self.obstacle is None

    @property
    def told(self) -> tuple[Issue, ...]:
        """What the cluster is told of, the most important first."""
        rank = {domain: number for number, domain in enumerate(IMPORTANT)}
        told = [t for t in self.troubles if t[0] not in NOT_TOLD]
        return tuple(
            issue
            for _, issue in sorted(told, key=lambda t: (rank.get(t[0], len(rank)), t[1].subject))
        )


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """A condition of the Node; ``status`` is True, False or Unknown, as Kubernetes writes them."""

    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """What the API server has shown of the Node.

    Attributes:
        condition: ours; None if it has none.
        heartbeat: when ours was last told, as it is written there.
        transition: since when it has its status, as it is written there.
        taints: the start-up taints: place in the list, and the taint as JSON.
        most_pods: that kubelet takes; 0 if it is not said.
    """

    uid: str
    condition: NodeCondition | None = None
    heartbeat: str = ""
    transition: str = ""
    taints: tuple[tuple[int, str], ...] = ()
    most_pods: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the API server.

    Attributes:
        path: its parts, which may be any text.
        what: it does, for people.
        right: verb and resource that a role must grant.
    """

    method: str
    path: tuple[str, ...]
    what: str
    right: str
    kind: str = ""  # media type of the body
    body: str = ""


def describe(reading: Reading) -> NodeCondition:
    """Say how the node's network is: one reason, the most important one, and numbers."""
    told = reading.told
    first = told[0] if told else None
    numbers = f"{reading.in_use} of {reading.held} addresses in use"
    if reading.waiting:
        numbers += f", {reading.waiting} pod{'s wait' if reading.waiting > 1 else ' waits'}"
    issue = first or reading.obstacle
    more = f", and {len(told) - 1} more" if len(told) > 1 else ""
    message = f"{numbers}; {issue.subject}: {issue.message}{more}" if issue else numbers
    if reading.obstacle is not None and (first or reading.has_converged):
        status, reason = "False", (first or reading.obstacle).reason
    elif not reading.has_converged:
        status, reason = "Unknown", STARTING
        message = "no pass over the node has succeeded yet"
    elif reading.waiting_s >= PATIENCE_S:
        status, reason = "False", first.reason if first else "PodsWait"
    else:
        status, reason = "True", first.reason if first else "PodsServed"
    return NodeCondition(status, word(reason), bounded(message))


def word(reason: str) -> str:
    """Return a reason as Kubernetes takes it: letters and digits, 128 at most."""
    return re.sub(r"[^A-Za-z0-9]", "", reason)[:128] or "Other"


def bounded(text: str, most: int = MOST_TEXT) -> str:
    """Return text that can be printed and is not too long."""
    printed = "".join(c if c.isprintable() else " " for c in text[: 2 * most])
    return printed if len(printed) <= most else f"{printed[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


# -- the Node as it is shown --------------------------------------------------------------


def read_node(body: object, taint: str | None) -> NodeSeen:
    """Read what concerns us of a Node.

    Args:
        body: JSON as it was decoded.
        taint: key of the start-up taint.

    Raises:
        ValueError: it is no Node, or is not written as one.
    """
    metadata, status = _mapping(body, "metadata"), _mapping(body, "status")
    uid = metadata.get("uid")
    if not isinstance(uid, str) or not re.fullmatch(r"[A-Za-z0-9.-]{1,128}", uid):
        raise ValueError("a Node without a UID")
    seen = NodeSeen(
        uid,
        taints=tuple(_taints(_mapping(body, "spec").get("taints"), taint)),
        most_pods=_pods(status.get("capacity")),
    )
    for each in _list(status.get("conditions")):
        if isinstance(each, dict) and each.get("type") == TYPE:
            texts = [each.get(k, "") for k in ("status", "reason", "message")]
            times = [each.get(k) or "" for k in ("lastHeartbeatTime", "lastTransitionTime")]
            if not all(isinstance(t, str) for t in (*texts, *times)):
                raise ValueError(f"a condition {TYPE} whose fields are no texts")
            heartbeat, transition = (str(t)[:64] for t in times)
            condition = NodeCondition(*map(str, texts))
            return replace(seen, condition=condition, heartbeat=heartbeat, transition=transition)
    return seen


def _mapping(body: object, key: str) -> dict[str, Any]:
    found = body.get(key) if isinstance(body, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"no Node: it has no {key}")
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _pods(capacity: object) -> int:
    """Read a quantity of pods, which kubelet writes as a whole number."""
    said = capacity.get("pods") if isinstance(capacity, dict) else None
    return int(said) if isinstance(said, str) and re.fullmatch(r"[0-9]{1,6}", said) else 0


def _taints(value: object, key: str | None) -> Iterable[tuple[int, str]]:
    for place, each in enumerate(_list(value)[:MOST_TAINTS]):
        if key is not None and isinstance(each, dict) and each.get("key") == key:
            yield place, json.dumps(each)


# -- what is to be done -------------------------------------------------------------------


def look(name: str) -> Request:
    """Return the question for the Node."""
    return Request("GET", _node(name), "reading the Node", "get nodes")


def is_due(wanted: NodeCondition, seen: NodeSeen, age_s: float) -> bool:
    """Whether the condition is to be told; ``age_s`` is of the last heartbeat, in seconds."""
    told = seen.condition
    if told is None or told.status != wanted.status:
        return True
    return abs(age_s) >= (HEARTBEAT_S if told == wanted else NUMBERS_S)


def tell(name: str, wanted: NodeCondition, seen: NodeSeen, now: str) -> Request:
    """Return what makes the Node have the condition; other conditions stay (merged by type).

    ``now`` is in RFC 3339.
    """
    told = seen.condition
    is_same = told is not None and told.status == wanted.status and seen.transition != ""
    condition = {
        "type": TYPE,
        "status": wanted.status,
        "reason": wanted.reason,
        "message": wanted.message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": seen.transition if is_same else now,
    }
    return Request(
        "PATCH",
        (*_node(name), "status"),
        f"telling the condition {TYPE}",
        "patch nodes/status",
        "application/strategic-merge-patch+json",
        json.dumps({"status": {"conditions": [condition]}}),
    )


def untaint(name: str, seen: NodeSeen) -> Request:
    """Return what removes the start-up taints, if they still are where they were seen.

    A JSON patch is applied to the Node as it is then; if a taint is elsewhere, its test fails, and
    nothing is changed.
    """
    steps: list[dict[str, Any]] = []
    for place, taint in sorted(seen.taints, reverse=True):
        path = f"/spec/taints/{place}"
        steps.append({"op": "test", "path": path, "value": json.loads(taint)})
        steps.append({"op": "remove", "path": path})
    return Request(
        "PATCH",
        _node(name),
        "removing the start-up taint",
        "patch nodes",
        "application/json-patch+json",
        json.dumps(steps),
    )


def _node(name: str) -> tuple[str, ...]:
    return ("api", "v1", "nodes", name)
