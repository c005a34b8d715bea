"""The path of one connection, derived from the node's objects without sending a packet.

It walks rules, routes and sets as the kernel does, once over what is desired and once over what
the node has. The kernel is then asked the same questions (``difference``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network

from reconciler.core.attachment import Attachment
from reconciler.core.datapath import (
    Family,
    IpAddress,
    Marks,
    family_of,
    is_node_local,
)
from reconciler.core.facts import Eni
from reconciler.core.ranges import print_range
from reconciler.diagnostics.lookup import Packet
from reconciler.diagnostics.tables import Decision, Tables
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_rules import chain_of, sets_of
from reconciler.domains.snat import why_kept, why_translated
from reconciler.errors import UnknownPodError

PRIVATE = tuple(
    ip_network(cidr)
    for cidr in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
    )
)
"""What no internet gateway leads to: RFC 1918, RFC 6598, RFC 3927."""


@dataclass(frozen=True, slots=True)
class Query:
    """One connection.

    Attributes:
        pod: None for the host itself.
        peer: the other side, as the client addresses it.
        inbound: the peer opens the connection.
        at: the address of this node that the peer connects to (NodePort, hostPort); None if it
            connects to the pod itself.
        endpoint: what a service address is translated to before we decide; None if it is none.
        protocol: its number; None if any is meant.
        port: that the peer, or who connects, addresses; likewise.
    """

    pod: Attachment | None
    peer: IpAddress
    inbound: bool = False
    at: IpAddress | None = None
    endpoint: IpAddress | None = None
    protocol: int | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens to a packet, in words; ``about`` says to which part it belongs."""

    about: str
    text: str


@dataclass(frozen=True, slots=True)
class Leg:
    """One direction of the connection."""

    name: str
    steps: tuple[Step, ...]
    lookups: tuple[tuple[Packet, Decision], ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """The whole way.

    Attributes:
        legs: request and reply.
        source: whose address the receiver of the request sees.
        device: device index of the ENI that the request of an outgoing, or the reply of an
            incoming connection leaves by; None if it stays on the node.
        troubles: why it will not work, as far as this node can know.
        hints: what else decides, beyond the node.
    """

    legs: tuple[Leg, ...]
    source: IpAddress
    device: int | None
    troubles: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def find_pod(attachments: Iterable[Attachment], text: str) -> Attachment | None:
    """Return the attachment that a person means; None for the host itself.

    Args:
        attachments: those of this node.
        text: ``namespace/name``, a name, an address, the start of a container ID, or ``host``.

    Raises:
        UnknownPodError: there is none, or more than one.
    """
    if text == "host":
        return None
    attachments = list(attachments)
    found = [
        a
        for a in attachments
        if text in (a.pod, a.pod.rpartition("/")[2], *map(str, a.addresses))
        or a.key.container_id.startswith(text)
    ]
    if len(found) != 1:
        raise UnknownPodError(text, [a.pod or str(a.key) for a in found or attachments])
    return found[0]


def trace(query: Query, inputs: Inputs, tables: Tables) -> Trace:
    """Follow a connection through desired or observed tables."""
    version = query.peer.version
    primary = inputs.primary
    if primary is None:
        return Trace((), query.peer, None, ("no look at EC2 has shown the primary ENI yet",))
    host = primary.host_address(version)
    own = query.pod.addresses if query.pod else (host,) if host else ()
    home = next((a for a in own if a.version == version), None)
    if home is None:
        who = "the pod" if query.pod else "the host"
        family = family_of(query.peer).name
        trouble = f"{who} has no {family} address; see families in the document"
        return Trace((), query.peer, None, (trouble,))
    if query.pod and query.peer in own:
        step = Step("pod", f"{query.peer} is its own: nothing of this leaves the pod")
        return Trace((Leg("request", (step,)),), home, None)
    walk = _Walk(query, inputs, tables, primary, home)
    return walk.incoming() if query.inbound else walk.outgoing()


class _Walk:
    """One connection on its way; the steps of a leg are collected as they are taken."""

    def __init__(
        self, query: Query, inputs: Inputs, tables: Tables, primary: Eni, home: IpAddress
    ) -> None:
        self._query = query
        self._inputs = inputs
        self._tables = tables
        self._primary = primary
        self._home = home
        self._marks = Marks(inputs.document.routing.mark_mask)
        self._family: Family = family_of(query.peer)
        self._links = {name: eni for eni in inputs.enis if (name := inputs.links.get(eni.mac))}
        self._steps: list[Step] = []
        self._lookups: list[tuple[Packet, Decision]] = []
        self._troubles: list[str] = []
        self._hints: list[str] = []

    def outgoing(self) -> Trace:
        pod, peer = self._query.pod, self._query.peer
        target = self._query.endpoint or peer
        if pod:
            self._say("pod", f"{self._home} sends to {peer}: {_default_route(pod, self._family)}")
        if target != peer:
            self._say("service", f"{peer} is translated to {target}; the rest is decided for that")
        bound = 0
        packet = Packet(None, target)
        if pod:
            bound = self._bind_outgoing(self._home, target)
            packet = Packet(self._home, target, pod.veth, self._mark(self._home, target, bound))
        decision = self._route(packet)
        eni = self._links.get(decision.device)
        source = self._source_seen(pod, target, decision)
        self._leave(eni, source, target, decision)
        request = self._leg("request")
        self._reply_to(pod, source, target, eni, decision)
        device = eni.device_index if eni else None
        return self._result((request, self._leg("reply")), source, device)

    def _bind_outgoing(self, source: IpAddress, target: IpAddress) -> int:
        """Say what chain snat_mark does with the first packet."""
        if is_node_local(source):
            text = f"{source} means something on this node only: it leaves with the node's address"
            self._say("snat", text)
            return 0
        sets = sets_of(self._family)
        kept = self._tables.range_of(sets.no_snat, target)
        if kept:
            element = f"in {sets.no_snat} {print_range(*kept)}{why_kept(self._inputs, target)}"
            self._say("snat", f"{target} sees the pod: {element}")
            return 0
        why = why_translated(self._inputs, target)
        if self._tables.range_of(sets.pods, source) is None:
            self._say("snat", f"{source} is in no set of pods; nothing is translated")
            return 0
        mark = self._marks.of(0)
        self._say("snat", f"{target} sees the node: not in {sets.no_snat}{why}; ct mark {mark:#x}")
        return mark

    def _source_seen(
        self, pod: Attachment | None, target: IpAddress, decision: Decision
    ) -> IpAddress:
        """Say what chain source_nat does, and return the source that the receiver sees."""
        host = self._primary.host_address(self._family.version)
        by_primary = decision.device == self._inputs.links.get(self._primary.mac)
        sets = sets_of(self._family)
        is_translated = is_node_local(self._home) or (
            self._tables.range_of(sets.no_snat, target) is None
            and self._tables.range_of(sets.pods, self._home) is not None
        )
        if pod is None or host is None or not by_primary or not is_translated:
            return self._home
        ports = self._inputs.document.snat.ports
        self._say("snat", f"source {self._home} becomes {host} ({ports} port)")
        return host

    def _reply_to(
        self,
        pod: Attachment | None,
        source: IpAddress,
        target: IpAddress,
        eni: Eni | None,
        decision: Decision,
    ) -> None:
        home = self._home
        if eni is None:
            link = decision.device
            if link == "lo":
                self._say("host", f"answers {home}")
                link = ""
            self._route(Packet(target, home, link))
            return
        back = self._holder(source)
        self._arrive(back, target, source)
        if home != source:
            self._say("conntrack", f"{source} becomes {home} again")
        if back:
            self._route(Packet(target, home, self._inputs.links.get(back.mac, "")))

    def incoming(self) -> Trace:
        pod, peer, at = self._query.pod, self._query.peer, self._query.at
        home = self._home
        entry = self._holder(at or home)
        self._arrive(entry, peer, at or home)
        bound = 0
        if (at or pod is None) and entry:
            bound = self._marks.of(entry.device_index or 0)
            text = f"{at or home} is an address of this host: ct mark {bound:#x}, for this ENI"
            self._say("arrival", text)
        if at and pod:
            self._say("service", f"{at} is translated to {home}")
        if entry:
            link = self._inputs.links.get(entry.mac, "")
            self._route(Packet(peer, home, link, bound))
        request = self._leg("request")
        packet = Packet(home, peer)
        if pod:
            self._say("pod", f"{home} answers {peer}: {_default_route(pod, self._family)}")
            packet = Packet(home, peer, pod.veth, self._mark(home, peer, bound))
        decision = self._route(packet)
        eni = self._links.get(decision.device)
        answer = at or home
        if answer != home:
            self._say("conntrack", f"{home} becomes {answer} again")
        self._leave(eni, answer, peer, decision)
        return self._result((request, self._leg("reply")), peer, eni.device_index if eni else None)

    def _mark(self, source: IpAddress, target: IpAddress, bound: int) -> int:
        """Say what chain route_mark does: the connection's ENI, else the pod's own."""
        sets = sets_of(self._family)
        if by_main := self._tables.range_of(sets.by_main, target):
            mark = self._marks.of(0)
            text = f"{mark:#x}: the main table, for {sets.by_main} has {print_range(*by_main)}"
            self._say("mark", text)
            return mark
        if bound:
            self._say("mark", f"{bound:#x}: the ENI that the connection is bound to")
            return bound
        verdict = self._tables.verdicts.get((sets.pod_eni, source))
        devices = {chain_of(e.device_index or 0): e.device_index or 0 for e in self._inputs.enis}
        if verdict not in devices:
            self._say("mark", f"none: {sets.pod_eni} does not know {source}")
            return 0
        mark = self._marks.of(devices[verdict])
        self._say("mark", f"{mark:#x}: {sets.pod_eni} has {source} : {verdict}")
        return mark

    def _route(self, packet: Packet) -> Decision:
        decision = self._tables.look_up(packet)
        self._lookups.append((packet, decision))
        self._say("route", str(decision))
        if decision.rule is None:
            self._troubles.append(f"no route leads from this node to {packet.destination}")
        return decision

    def _leave(
        self, eni: Eni | None, source: IpAddress, target: IpAddress, decision: Decision
    ) -> None:
        if eni is None:
            if decision.rule:
                self._say("stays", f"on the node, dev {decision.device}; {target} sees {source}")
            return
        self._say("leaves", f"by {_name(eni)}, dev {decision.device}; {target} sees {source}")
        if not _holds(eni, source):
            self._troubles.append(
                f"the VPC drops it: {source} is no address of {_name(eni)} (source/dest check)"
            )
        private = any(target in c for c in (*self._inputs.node.vpc_cidrs, *PRIVATE))
        if self._family.private and not private and source != self._primary.primary:
            self._hints.append(
                f"{target} is beyond the VPC and sees {source}, which has no public address: its "
                "subnet's route table must lead to a NAT gateway, or to a peer that knows the way "
                "back"
            )

    def _arrive(self, eni: Eni | None, peer: IpAddress, address: IpAddress) -> None:
        if eni is None:
            self._troubles.append(f"no ENI of this node has {address}; the VPC knows no way to it")
            return
        link = self._inputs.links.get(eni.mac, "a link that is not here")
        self._say("arrives", f"from {peer} for {address} by {_name(eni)}, dev {link}")

    def _holder(self, address: IpAddress) -> Eni | None:
        return next((e for e in self._inputs.enis if _holds(e, address)), None)

    def _say(self, about: str, text: str) -> None:
        self._steps.append(Step(about, text))

    def _leg(self, name: str) -> Leg:
        leg = Leg(name, tuple(self._steps), tuple(self._lookups))
        self._steps, self._lookups = [], []
        return leg

    def _result(self, legs: tuple[Leg, ...], source: IpAddress, device: int | None) -> Trace:
        return Trace(legs, source, device, tuple(self._troubles), tuple(self._hints))


def _default_route(pod: Attachment, family: Family) -> str:
    return f"default via {family.gateway} dev {pod.key.ifname}, to the host's {pod.veth}"


def _holds(eni: Eni, address: IpAddress) -> bool:
    return eni.holds(address) or address in (eni.primary, *eni.host_addresses)


def _name(eni: Eni) -> str:
    return f"ENI {eni.device_index} ({eni.eni_id})"
