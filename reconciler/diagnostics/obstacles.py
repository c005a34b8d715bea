"""What other owners' chains do to a connection that is traced; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from reconciler.core.datapath import IpAddress
from reconciler.diagnostics.lookup import Decision, Packet
from reconciler.diagnostics.packet import Mark, Passage, State
from reconciler.diagnostics.ruleset import BaseChain, Ruleset
from reconciler.diagnostics.trace import Leg, Query, Trace
from reconciler.diagnostics.walk import ChainOutcome, at_hook
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
    sent = _before_translation(query, leg, passage)
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


def _before_translation(query: Query, leg: Leg, passage: Passage) -> Passage:
    """A request to a service, or to a port of the node, as the client has sent it."""
    sent_to: IpAddress | None = query.at or (query.peer if query.endpoint else None)
    if leg.name == "reply" or sent_to is None:
        return passage
    return replace(
        passage,
        destination=sent_to,
        port=query.port,
        translated=False,
        local=query.at is not None,
    )


def _tell(found: Obstacles, query: Query, traced: Trace, leg: Leg, outcome: ChainOutcome) -> None:
    may = "" if len(outcome.words) == 1 else "may "
    for hit in outcome.hits:
        why = f": it asks for {hit.asks}, which is not evaluated or not known" if hit.asks else ""
        if hit.what == "unread" and may:
            found.sure.append(
                f"{leg.name}: chain {hit.chain} was not looked at: it has too many rules, or "
                "changes all the time; what becomes of the packet there is not known"
            )
        elif hit.what == "drop" and "drop" in outcome.words:
            verb = "may drop or reject" if may else "drops or rejects"
            found.sure.append(f"{leg.name}: {hit} {verb} it at hook {outcome.base.hook}{why}")
        elif hit.what == "snat" and _is_kept(query, traced, leg):
            verb = "may translate" if may else "translates"
            found.sure.append(
                f"{leg.name}: {hit} {verb} its source (snat, masquerade), so that the receiver "
                f"does not see {traced.source}{why}"
            )
        elif hit.what == "notrack" and _is_translated(query, traced, outcome.base):
            verb = "may take" if hit.asks else "takes"
            found.sure.append(
                f"{leg.name}: {hit} {verb} it out of connection tracking (notrack), so that the "
                f"receiver sees the pod's own address and not {traced.source}{why}"
            )
        elif hit.what == "rewrite":
            verb = "may write" if hit.asks else "writes"
            found.sure.append(
                f"{leg.name}: {hit} {verb} another address or port into it at hook "
                f"{outcome.base.hook}, beside connection tracking{why}; what this trace says of "
                "it from there on is about the packet as it was"
            )
        elif hit.what == "dnat" and leg.name == "request" and not (query.endpoint or query.at):
            text = (
                f"{leg.name}: {hit} {may}translate{'' if may else 's'} its destination{why}; "
                "name where it leads by --endpoint, and the port by --port"
            )
            (found.hints if may else found.sure).append(text)


def _is_translated(query: Query, traced: Trace, base: BaseChain) -> bool:
    """Whether conntrack, which comes after a chain, gives the connection the node's address."""
    return (
        base.priority < CONNTRACK_PRIORITY
        and query.pod is not None
        and not query.inbound
        and traced.source not in (None, *query.pod.addresses)
    )


def _is_kept(query: Query, traced: Trace, leg: Leg) -> bool:
    """Whether the receiver shall see the pod's own address."""
    if leg.name != "request" or query.pod is None:
        return False
    return query.inbound or traced.source in query.pod.addresses
