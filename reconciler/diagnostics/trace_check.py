"""A trace compared with what the kernel answers to the same questions."""

from __future__ import annotations

from collections.abc import Iterable

from reconciler.core import datapath
from reconciler.core.attachment import Attachment
from reconciler.core.datapath import IpAddress
from reconciler.diagnostics.lookup import Decision, Found, Packet
from reconciler.diagnostics.trace import Query, Trace
from reconciler.domains.rule import Rule

UNASKED = ("FRA_IP_PROTO", "FRA_SPORT_RANGE", "FRA_DPORT_RANGE", "FRA_UID_RANGE", "FRA_TUN_ID")
"""Selectors of rules that the questions to the kernel leave out (linux/fib_rules.h)."""


def compare(planned: Trace, actual: Trace, answers: Iterable[Found]) -> tuple[str, ...]:
    """Say where the node differs from what is desired, and the kernel's answers from both.

    There is one answer for each lookup of ``planned``, in order.
    """
    differences = []
    for leg, other in zip(planned.legs, actual.legs, strict=True):
        before, after = [s.text for s in leg.steps], [s.text for s in other.steps]
        if before != after:
            wanted = [t for t in before if t not in after]
            differences.append(
                f"{leg.name}: the node differs from the document: {'; '.join(wanted) or 'more'} "
                f"is desired, {'; '.join(t for t in after if t not in before) or 'nothing'} is "
                "there; see 'node-network diff'"
            )
    lookups = [lookup for leg in planned.legs for lookup in leg.lookups]
    for (packet, decision), answer in zip(lookups, answers, strict=True):
        if said := _disagreement(decision, answer):
            differences.append(f"{packet.command}: the kernel says {said}, not '{decision}'")
    return tuple(differences)


def unasked(query: Query, rules: Iterable[Rule]) -> tuple[str, ...]:
    """Name rules ahead of ours that may take it, and that the kernel was not asked about."""
    family = datapath.family_of(query.endpoint or query.peer).name
    found = sorted(
        (r.priority, [w.partition("=")[0] for w in r.extra.split(",")])
        for r in rules
        if r.family == family and r.priority < datapath.ENI_PRIORITY + datapath.MAX_DEVICE_INDEX
    )
    return tuple(
        f"ip rule {priority} selects by {', '.join(n for n in names if n in UNASKED)}, which the "
        "kernel was not asked about: it may take this connection elsewhere"
        for priority, names in found
        if any(n in UNASKED for n in names)
    )


def compare_inside(pod: Attachment, peer: IpAddress, answer: Found) -> tuple[str, ...]:
    """Say where a pod's own kernel sends its packets, if not to the host."""
    gateway, device = datapath.family_of(peer).gateway, pod.key.ifname
    if not answer.refusal and (answer.device, answer.gateway) == (device, gateway):
        return ()
    via = f" via {answer.gateway}" if answer.gateway else ""
    says = f"'{answer.refusal}'" if answer.refusal else f"dev {answer.device}{via}"
    return (
        f"in the pod, {Packet(None, peer).command}: the kernel says {says}, not dev {device} via "
        f"{gateway}; something in the pod has changed it (a sandbox such as gVisor does)",
    )


def _disagreement(decision: Decision, answer: Found) -> str:
    if answer.refusal:
        return "" if decision.rule is None else f"'{answer.refusal}'"
    table = decision.rule.table if decision.rule else 0
    gateway = decision.route.gateway if decision.route else None
    if (answer.table, answer.device, answer.gateway) == (table, decision.device, gateway):
        return ""
    via = f" via {answer.gateway}" if answer.gateway else ""
    return f"table {answer.table}{via} dev {answer.device}"
