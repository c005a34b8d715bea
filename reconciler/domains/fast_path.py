"""The fast path: open TCP connections of pods that the kernel forwards by a flowtable.

What is in a flowtable passes by routing, conntrack and every chain, in both directions, from the
link it comes in by to the one it leaves by. Only what a pod sends adds a connection: it is routed
by its own mark, as all of it will be, and the kernel looks for the way back by the pod's link
alone. What comes in by an ENI carries no mark; the way back that is found for it is the main
table's.

By then the guard, and all chains of others, have let a packet of each direction pass. A flow is
of two links and of addresses and ports on both sides: what a pod forges, or what comes by another
link, is in none.

Not UDP: where a service's endpoint ends, kube-proxy deletes connections to it, which some kernels
refuse for those in a flowtable (EBUSY, ``ctnetlink_del_conntrack``). TCP ends by its own resets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.datapath import FLOWS
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Change, Key, Plan, Verb, compare

FLOWTABLE = "flows"


@dataclass(frozen=True, slots=True)
class FlowTable:
    """Our table with the flowtable, and the chain that puts connections into it.

    ``readable``: false if there is anything else in it than what we write.
    """

    kind: ClassVar[str] = "nft-flowtable"
    readable: bool = True

    @property
    def key(self) -> Key:
        return (FLOWS,)

    def command(self, verb: Verb) -> str:
        if verb is Verb.DELETE:
            return f"nft delete table inet {FLOWS}"
        return f"nft add flowtable inet {FLOWS} {FLOWTABLE}, and the chain that fills it"


@dataclass(frozen=True, slots=True)
class FlowLink:
    """A link whose packets are looked for in the flowtable."""

    kind: ClassVar[str] = "nft-flowtable-link"
    link: str

    @property
    def key(self) -> Key:
        return (self.link,)

    def command(self, verb: Verb) -> str:
        word = "delete" if verb is Verb.DELETE else "add"
        return f"nft {word} flowtable inet {FLOWS} {FLOWTABLE} {{ devices = {{ {self.link} }}; }}"


FlowObject = FlowTable | FlowLink


def desire(inputs: Inputs) -> frozenset[FlowObject]:
    """The flowtable, with the links of ENIs and of pods; only where nothing speaks against it."""
    primary = inputs.links.get(inputs.node.primary_mac)
    enis = {name for _, name in inputs.pod_enis} | ({primary} if primary else set())
    return frozenset({FlowTable(), *map(FlowLink, enis), *links_of_pods(inputs)})


def links_of_pods(inputs: Inputs) -> frozenset[FlowLink]:
    """The links of pods alone."""
    return frozenset(FlowLink(a.veth) for a in inputs.placed)


def plan(desired: Iterable[FlowObject], observed: Iterable[FlowObject]) -> Plan:
    """Compare; a table that is not as we write it is made anew, and with it ends what is in it."""
    desired, observed = frozenset(desired), frozenset(observed)
    table = next((o for o in observed if isinstance(o, FlowTable)), None)
    if table is None or table in desired:
        return _compare(desired, observed)
    gone = Change(Verb.DELETE, table, "not desired, with all that is in it")
    return Plan((gone,)) + _compare(desired, frozenset())


def _compare(desired: frozenset[FlowObject], observed: frozenset[FlowObject]) -> Plan:
    """The table first, and then links."""
    tables, links = (
        compare(*([o for o in objects if isinstance(o, kind)] for objects in (desired, observed)))
        for kind in (FlowTable, FlowLink)
    )
    return tables + links
