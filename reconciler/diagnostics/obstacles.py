"""What other owners' chains do to a connection that is traced; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from reconciler.diagnostics.lookup import Decision, Packet
from reconciler.diagnostics.packet import Mark, Passage, State
from reconciler.diagnostics.ruleset import Ruleset
from reconciler.diagnostics.trace import Leg, Query, Trace
from reconciler.diagnostics.walk import ChainOutcome, Hit, at_hook
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat import ROUTE_MARK_PRIORITY

CLIENT_PORT = 49152
"""What a client may connect from: the first port of IANA's dynamic range, within Linux' own."""


CONNTRACK_PRIORITY = -200
"""NF_IP_PRI_CONNTRACK: after it, ``notrack`` has no effect: conntrack has seen the packet."""


@dataclass(slots=True)
class Obstacles:
    """What other owners' chains do to a connection.

    Attributes:
        sure: what stops or rewrites it, may do so, or was not read: the trace is not reliable.
        hints: other rules that may decide.
    """

    sure: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def find_obstacles(query: Query, traced: Trace, inputs: Inputs, ruleset: Ruleset) -> Obstacles:
    """Follow both legs of a connection through all hooks that they pass."""
    found, mask = Obstacles(), inputs.document.routing.mark_mask
    for leg, (packet, decision) in ((one, asked) for one in traced.legs for asked in one.lookups):
        start = _passage(query, leg, packet, decision)
        if any(a.veth == packet.link for a in inputs.attachments):
            start = replace(start, has_way_back=True)  # of pods there is a route by each link
        mark = Mark(0)
        for hook, passage in _hooks(query, leg, packet, start):
            late = [b for b in ruleset.bases if b.priority > ROUTE_MARK_PRIORITY]
            late = late if hook == "prerouting" else []  # behind where we set the mark
            for bases in ([b for b in ruleset.bases if b not in late], late):
                for outcome in at_hook(bases, hook, replace(passage, mark=mark), ruleset):
                    _tell(found, query, traced, leg, outcome)
                    mark = outcome.mark
                    if bases is late and (mark.value ^ packet.mark) & mark.known & mask:
                        found.sure.append(
                            f"{leg.name}: chain {outcome.base.id} sets bits of the packet's mark "
                            f"to {mark.value & mask:#x} that are {packet.mark & mask:#x} for its "
                            f"route; have it leave {mask:#x} alone, or choose another "
                            "routing.markMask"
                        )
                        mark = mark.changed(mask, packet.mark)  # said once
                if bases is not late and hook in ("prerouting", "output"):
                    mark = mark.changed(mask, packet.mark)  # what our own chains do there
    return found


def _passage(query: Query, leg: Leg, packet: Packet, decision: Decision) -> Passage:
    is_reply = leg.name == "reply"
    port = None if query.endpoint or query.at else query.port  # of a service: its own is another
    local = decision.rule is not None and decision.route is None
    return Passage(
        incoming=packet.link,
        outgoing="" if local else decision.device,
        source=packet.source,
        destination=packet.destination,
        protocol=query.protocol,
        source_port=port if is_reply else CLIENT_PORT,
        port=CLIENT_PORT if is_reply else port,
        state=State.ESTABLISHED if is_reply else State.NEW,
        translated=bool(query.endpoint or query.at),
        local=local,
    )


def _hooks(
    query: Query, leg: Leg, packet: Packet, passage: Passage
) -> Iterator[tuple[str, Passage]]:
    """Yield the hooks that a packet passes, each with what it looks like there."""
    sent, sent_to = passage, query.at or (query.peer if query.endpoint else None)
    if leg.name == "request" and sent_to:  # to a service, or a port of the node: as it was sent
        local = query.at is not None
        sent = replace(
            passage, destination=sent_to, port=query.port, translated=False, local=local
        )
    if packet.link:
        arriving = replace(sent, outgoing="")
        yield "ingress", replace(arriving, state=None)
        yield "prerouting", arriving
    else:
        yield "output", replace(sent, incoming="")
    if passage.local:
        yield "input", replace(passage, outgoing="")
        return
    if packet.link:
        yield "forward", passage
    leaving = replace(passage, incoming="")
    yield "postrouting", leaving
    yield "egress", replace(leaving, state=None)


SAYS = {
    "drop": ("drop or reject", "drops or rejects", "it at hook {hook}{why}"),
    "snat": (
        "translate",
        "translates",
        "its source (snat, masquerade), so that the receiver does not see {source}{why}",
    ),
    "notrack": (
        "take",
        "takes",
        "it out of connection tracking (notrack), so that the receiver sees the pod's own address "
        "and not {source}{why}",
    ),
    "rewrite": (
        "write",
        "writes",
        "another address or port into it at hook {hook}, beside connection tracking{why}; what "
        "this trace says of it from there on is about the packet as it was",
    ),
    "dnat": (
        "translate",
        "translates",
        "its destination{why}; name where it leads by --endpoint, and the port by --port",
    ),
}
"""What a rule may do, does, and to what."""


def _tell(found: Obstacles, query: Query, traced: Trace, leg: Leg, outcome: ChainOutcome) -> None:
    for hit in outcome.hits:
        is_sure = len(outcome.words) == 1
        if hit.what == "unread" and not is_sure:
            found.sure.append(
                f"{leg.name}: chain {hit.chain} was not looked at: it has too many rules, or "
                "changes all the time; what becomes of the packet there is not known"
            )
        if not _matters(hit, query, traced, leg, outcome):
            continue
        is_sure = not hit.asks if hit.what in ("notrack", "rewrite") else is_sure
        may, does, text = SAYS[hit.what]
        why = f": it asks for {hit.asks}, which is not evaluated or not known" if hit.asks else ""
        text = text.format(hook=outcome.base.hook, source=traced.source, why=why)
        about = found.hints if hit.what == "dnat" and not is_sure else found.sure
        about.append(f"{leg.name}: {hit} {does if is_sure else f'may {may}'} {text}")


def _matters(hit: Hit, query: Query, traced: Trace, leg: Leg, outcome: ChainOutcome) -> bool:
    """Whether what a rule does is other than this connection is meant to be."""
    own = query.pod.addresses if query.pod else ()
    match hit.what:
        case "drop":
            return "drop" in outcome.words
        case "snat":  # if the receiver shall see the pod's own address
            is_kept = query.inbound or traced.source in own
            return leg.name == "request" and query.pod is not None and is_kept
        case "notrack":  # if conntrack, which comes after the chain, gives it the node's address
            is_early = outcome.base.priority < CONNTRACK_PRIORITY and query.pod is not None
            return is_early and not query.inbound and traced.source not in (None, *own)
        case "dnat":
            return leg.name == "request" and not (query.endpoint or query.at)
        case _:
            return hit.what == "rewrite"
