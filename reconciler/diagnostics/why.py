"""Why an object of the kernel is there, by what is desired: one sentence each, and its setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reconciler.core import datapath
from reconciler.core.attachment import Attachment
from reconciler.core.datapath import FAMILIES, family_of
from reconciler.core.facts import Eni
from reconciler.domains import route, rule
from reconciler.domains.inputs import Inputs
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.engine.plan import Verb
from reconciler.ipam.identity import rules_of

Where = Callable[..., str]
"""Names a setting by its keys, with its line in the document."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one object is there.

    Attributes:
        number: priority of a rule, table of a route.
        command: that makes it, by which an operator knows it.
        why: one sentence: what it is for, by which setting, and what removes it.
    """

    number: int
    command: str
    why: str


def explain_rules(inputs: Inputs, where: Where) -> list[Reason]:
    """Say of each rule that is desired why it is, in the kernel's order."""
    rules = sorted(rule.desire(inputs), key=lambda r: (r.priority, r.family))
    return [Reason(r.priority, r.command(Verb.CREATE), _of_rule(r, inputs, where)) for r in rules]


def _of_rule(r: Rule, inputs: Inputs, where: Where) -> str:
    ends = f"it goes when no pod has {r.family} and {where('families')} does not name it"
    marks = f"by the bits of {where('routing', 'markMask')}"
    match r.priority:
        case datapath.PODS_PRIORITY:
            return (
                "all packets are looked up among this node's pods first, and what is for none of "
                f"them goes on; {ends}"
            )
        case datapath.PRIMARY_PRIORITY:
            return (
                "packets that must use the primary ENI (connections with the node's address, pods "
                f"on that ENI) are marked so {marks}, and go by main; {ends}"
            )
        case datapath.HOST_PRIORITY:
            eni = _eni_of_table(inputs, r.table)
            return (
                f"what the host itself sends from its address on {eni} leaves by that ENI, "
                "because the VPC drops it elsewhere; it goes with the ENI"
            )
        case _:
            eni = _eni_of_table(inputs, r.table)
            return (
                f"packets of pods and connections on {eni} are marked so {marks}, and leave by "
                "that ENI; it goes when the ENI is given back or detached"
            )


def _eni_of_table(inputs: Inputs, table: int) -> str:
    for eni, link in inputs.pod_enis:
        if eni.device_index and datapath.eni_table(eni.device_index) == table:
            return name_eni(eni, link)
    return "an ENI"


def name_eni(eni: Eni, link: str = "") -> str:
    """Name an ENI as operators find it in EC2 and on the host."""
    parts = [f"device {eni.device_index}", link, f"group {eni.group}" if eni.group else ""]
    return f"{eni.eni_id} ({', '.join(filter(None, parts))})"


def explain_routes(inputs: Inputs, where: Where) -> list[Reason]:
    """Say of each route on the host that is desired why it is, by table and destination."""
    pods = {own: a for a in inputs.attachments for own in a.addresses}
    routes = sorted((r for r in route.desire(inputs) if not r.netns), key=lambda r: r.key)
    return [
        Reason(r.table, r.command(Verb.CREATE), _of_route(r, inputs, pods, where)) for r in routes
    ]


def _of_route(
    r: Route, inputs: Inputs, pods: dict[datapath.IpAddress, Attachment], where: Where
) -> str:
    pod = pods.get(r.destination.network_address)
    if r.table == datapath.PODS_TABLE and pod is not None:
        return f"it leads to {name_pod(pod)} by the host end of its link; it goes with its DEL"
    eni = _eni_of_table(inputs, r.table)
    if r.gateway is None:
        return f"it makes the VPC's router reachable on {eni}; it goes with the ENI"
    return (
        f"what must leave by {eni} goes to the VPC's router in its subnet, which the routes of "
        f"the subnet (in EC2) lead on; {where('families')}; it goes with the ENI"
    )


def name_pod(pod: Attachment) -> str:
    """Name a pod as its owner does, if the runtime has said how."""
    return f"pod {pod.pod}" if pod.pod else f"container {pod.key}"


def objects_of(inputs: Inputs, pod: Attachment) -> Iterator[str]:
    """Yield the commands that make a pod's routes: on the host, and in its namespace."""
    for r in sorted(route.desire_pods(inputs), key=lambda r: r.key):
        is_own = r.netns == pod.netns if r.netns else r.device == pod.veth
        if is_own:
            yield r.command(Verb.CREATE)


def snat_of(inputs: Inputs, pod: Attachment) -> str:
    """Say in few words what decides whose address destinations see."""
    places = rules_of(pod.pod, inputs.document.snat.rules)
    first = f"first {', '.join(f'snat.rules[{n}]' for n in places)}; then " if places else ""
    return first + _policy_of(inputs, pod)


def _policy_of(inputs: Inputs, pod: Attachment) -> str:
    eni = next((e for e in inputs.enis if e.eni_id == pod.eni_id), None)
    group = eni.group if eni else ""
    policies = dict(inputs.document.snat_policies)
    policy = policies.get(group, policies[""])
    if not any(family_of(a).private for a in pod.vpc_addresses):
        families = " and ".join(n for n, f in FAMILIES.items() if not f.private)
        return f"all destinations see the pod's own address: {families} is never translated"
    if policy.mode == "external":
        return "all destinations see the pod's own address, by snat.mode external"
    if policy.only_cidrs is not None:
        return "destinations in snat.onlyCIDRs see the node's address, all others the pod's"
    return "destinations beyond the VPC see the node's address, but for snat.excludeCIDRs"
