"""What the document's rules decide about a pod's connection, by the tables that are walked."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.datapath import IpAddress, family_of
from reconciler.diagnostics.lookup import Tables
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_identities import BIND, SETS
from reconciler.egress.destinations import holder


@dataclass(frozen=True, slots=True)
class Ruling:
    """One rule's decision.

    Attributes:
        text: what it makes of the first packet.
        device: of the ENI that it binds the connection to; None for the pod's own.
        source: what the receiver sees if it leaves by that ENI; None for the pod's own address.
        refusal: why it does not leave; "" if it does.
    """

    text: str
    device: int | None = None
    source: IpAddress | None = None
    refusal: str = ""


def find_ruling(
    inputs: Inputs, tables: Tables, pod: IpAddress, target: IpAddress
) -> Ruling | None:
    """Return what the first rule decides that is about a pod and a destination; None if none is.

    A table may have been written for another document: what its rules mean is this document's.
    """
    place = tables.rule_for(pod, target)
    rules = inputs.document.snat.rules
    if place is None or place >= len(rules):
        return None
    rule, sets = rules[place], SETS[family_of(pod).name]
    what = holder(rule.to, inputs.host.egress, target)
    why = f"by snat.rules[{place}] {what} as {rule.identity}"
    if rule.identity == "pod":
        return Ruling(f"{target} sees the pod: {why}")
    if rule.identity == "node":
        host = inputs.primary.host_address(pod.version) if inputs.primary else None
        refusal = "" if host else f"the node has no address that {target} may see"
        return Ruling(f"{target} sees the node: {why}", 0, host, refusal)
    own = tables.values.get((sets.dedicated, pod))
    chain = tables.verdicts.get((sets.dedicated_eni, pod), "")
    if own is None or not chain:
        refusal = f"the pod's namespace has no dedicated address, and {target} may see no other"
        return Ruling(f"{target} sees nothing yet: {why}", None, None, refusal)
    device = int(chain.removeprefix(BIND))
    return Ruling(f"{target} sees {own}, the namespace's address: {why}", device, own)
