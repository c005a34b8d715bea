"""What ``status`` shows beside counts: policy, limits, ENIs, looks, and what was repaired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isinf
from typing import Any

from reconciler.core.datapath import FAMILIES
from reconciler.core.facts import Eni
from reconciler.daemon.duty import Condition
from reconciler.domains.inputs import Inputs
from reconciler.errors import Issue
from reconciler.ipam import budget
from reconciler.ipam.cloud import Cloud, Limits, OtherCard
from reconciler.ipam.forecast import Outlook
from reconciler.ipam.pool import most_addresses
from reconciler.ipam.records import Records
from reconciler.targets.ec2.tally import Tallied
from schemas.document import NodeNetwork

MOST_SHOWN = 50  # entries of one list within an entry of another


@dataclass(frozen=True, slots=True)
class Repair:
    """Things of ours that another writer had changed, and that one pass has put right.

    Attributes:
        at: seconds since the epoch.
        kind: of all of them.
        verb: what was done to them: create, update or delete.
        count: how many they are.
        actions: the first ones, as commands that an operator would type.
        reason: of the first one.
        by: who else has changed the network in the seconds before, the latest first; a hint.
    """

    at: float
    domain: str
    kind: str
    verb: str
    count: int
    actions: tuple[str, ...]
    reason: str
    by: tuple[str, ...] = ()


def describe_policies(document: NodeNetwork) -> list[dict[str, Any]]:
    """Describe the SNAT policies in force: that of no group first."""
    return [
        {
            "group": group,
            "mode": snat.mode,
            "excludeCIDRs": _some(snat.exclude_cidrs),
            "excluded": len(snat.exclude_cidrs),
            "onlyCIDRs": None if snat.only_cidrs is None else _some(snat.only_cidrs),
        }
        for group, snat in document.snat_policies
    ]


def describe_rules(document: NodeNetwork) -> list[dict[str, Any]]:
    """Describe the rules that decide before all policies, in order."""
    return [
        {"namespace": r.namespace, "to": _some(r.to), "number": len(r.to), "as": r.identity}
        for r in document.snat.rules
    ]


def describe_limits(inputs: Inputs, cloud: Cloud, records: Records) -> dict[str, Any] | None:
    """Describe what the instance type allows, and how near the node is; None if not known."""
    document, kind = inputs.document, inputs.node.instance_type
    given = dict(document.instance_types).get(kind)
    limits = Limits(given.enis, given.addresses_per_eni) if given else cloud.limits
    if limits is None:
        return None
    attached = [e for e in cloud.enis if e.device_index is not None]
    foreign = sum(not e.owned for e in attached)
    most, text = most_addresses(document, limits, foreign=foreign)
    held = sum(len(e.pod_addresses) for e in attached if e.owned)
    is_counted = any(FAMILIES[name].counted for name in document.families)
    return {
        "instanceType": kind,
        "enis": {"used": len(attached), "most": limits.enis},
        "addresses": {"used": held, "most": most, "text": text} if is_counted else None,
        "pods": {"used": len(records.living), "most": document.most_pods},
    }


def describe_outlook(outlook: Outlook, clock: float) -> dict[str, Any]:
    """Describe the pool's target, and for how long there are addresses; in monotonic seconds."""
    supply, left = outlook.supply, outlook.seconds_left(clock)
    if supply is None:
        return {"target": None, "exhaustedInSeconds": None}
    return {
        "target": {"low": supply.low, "aim": supply.aim, "high": supply.high},
        "exhaustedInSeconds": None if left is None or isinf(left) else round(left),
    }


def describe_budget(calls: Mapping[str, Tallied], clock: float) -> dict[str, int]:
    """Describe how many calls of each action the node's own budget allows at once."""
    return {action: int(budget.left(c.bucket, action, clock)) for action, c in calls.items()}


def describe_eni(eni: Eni) -> dict[str, Any]:
    """Describe one ENI."""
    return {
        "id": eni.eni_id,
        "device": eni.device_index,
        "status": eni.status,
        "owned": eni.owned,
        "group": eni.group,
        "subnet": eni.subnet_id,
        "primary": str(eni.primary),
        "addresses": len(eni.pod_addresses),
        "podAddresses": _some(eni.secondaries),
        "prefixes": [str(p) for p in (*eni.prefixes, *eni.ipv6_prefixes)],
    }


def describe_other_card(eni: OtherCard) -> dict[str, Any]:
    """Describe an ENI that is left alone because of its place."""
    return {"id": eni.eni_id, "card": eni.card, "device": eni.device_index, "type": eni.kind}


def describe_pods(records: Records, devices: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Describe the attachments, in the order of their pods' names."""
    return [
        {
            "pod": a.pod or str(a.key),
            "addresses": [str(own) for own in a.addresses],
            "eni": a.eni_id,
            "device": devices.get(a.eni_id),
            "veth": a.veth,
        }
        for a in sorted(records.living, key=lambda a: (a.pod or str(a.key), a.key))
    ]


def describe_conditions(known: Iterable[Condition], now: float) -> list[dict[str, Any]]:
    """Describe what is wrong, each with its age; ``now``: seconds since the epoch."""
    return [
        {**c, "ageSeconds": age(now, datetime.fromisoformat(str(c["since"])).timestamp())}
        for c in known
    ]


def describe_obstacle(obstacle: Issue | None) -> dict[str, str] | None:
    """Describe why no pod can start; None if they can."""
    if obstacle is None:
        return None
    return {name: getattr(obstacle, name) for name in ("subject", "reason", "message")}


def describe_repairs(repairs: Iterable[Repair], now: float) -> list[dict[str, Any]]:
    """Describe what was repaired, the latest first; ``now``: seconds since the epoch."""
    return [
        {
            "at": datetime.fromtimestamp(repair.at, UTC).isoformat(timespec="seconds"),
            "ageSeconds": age(now, repair.at),
            "domain": repair.domain,
            "kind": repair.kind,
            "verb": repair.verb,
            "count": repair.count,
            "actions": list(repair.actions),
            "reason": repair.reason,
            "by": list(repair.by),
        }
        for repair in reversed(tuple(repairs))
    ]


def age(now: float, then: float) -> int:
    """Return whole seconds since then; 0 if a clock was set back."""
    return round(max(now - then, 0.0))


def _some(values: Iterable[object]) -> list[str]:
    return [str(v) for _, v in zip(range(MOST_SHOWN), values, strict=False)]
