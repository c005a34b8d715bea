"""The path of one connection, derived from the node's objects without sending a packet.

It walks rules, routes and sets as the kernel does, once over what is desired and once over what
the node has. The kernel is then asked the same questions (``diagnostics.trace_check``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from reconciler.core import datapath
from reconciler.core.attachment import Attachment
from reconciler.core.datapath import INSTANCE_METADATA, PRIVATE, IpAddress
from reconciler.core.facts import Eni
from reconciler.core.ranges import print_range
from reconciler.diagnostics.lookup import Decision, Packet, Tables
from reconciler.diagnostics.ruling import find_ruling
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_guard import FROM_POD
from reconciler.domains.nat_rules import OWN, chain_of, no_snat_of, sets_of
from reconciler.domains.snat import why_kept, why_translated
from reconciler.errors import UnknownPodError


@dataclass(frozen=True, slots=True)
class Query:
    """One connection of a pod, or of the host, with a peer as the client addresses it.

    Attributes:
        inbound: the peer opens the connection.
        at: the address of this node that the peer connects to (NodePort, hostPort), if any.
        endpoint: what a service address is translated to before we decide.
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
    """The whole way: request and reply.

    Attributes:
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

    The text is ``namespace/name``, a name, an address, the start of a container ID, or ``host``.

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
        family = datapath.family_of(query.peer).name
        trouble = f"{who} has no {family} address; see families in the document"
        return Trace((), query.peer, None, (trouble,))
    if query.pod and query.peer in own:
        step = Step("pod", f"{query.peer} is its own: nothing of this leaves the pod")
        return Trace((Leg("request", (step,)),), home, None)
    walk = _Walk(query, inputs, tables, primary, home, datapath.family_of(query.peer))
    return walk.incoming() if query.inbound else walk.outgoing()


@dataclass(slots=True)
class _Walk:
    """One connection on its way; the steps of a leg are collected as they are taken."""

    query: Query
    inputs: Inputs
    tables: Tables
    primary: Eni
    home: IpAddress
    family: datapath.Family
    legs: list[Leg] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    lookups: list[tuple[Packet, Decision]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def outgoing(self) -> Trace:
        pod, peer, home = self.query.pod, self.query.peer, self.home
        target = self.query.endpoint or peer
        if pod:
            self._say("pod", f"{home} sends to {peer}: {_default_route(pod, self.family)}")
        if target != peer:
            self._say("service", f"{peer} is translated to {target}; the rest is decided for that")
        packet = Packet(None, target)
        if pod:
            self._guard(pod)
            bound = self._bind_outgoing(target)
            packet = Packet(home, target, pod.veth, self._mark(pod, target, bound))
        decision = self._route(packet)
        source = self._source_seen(target, decision)
        eni = self._leave(source, target, decision)
        self._end("request")
        if eni is None:
            if decision.device == "lo":
                self._say("host", f"answers {home}")
            self._route(Packet(target, home, "" if decision.device == "lo" else decision.device))
            return self._result(source, None)
        back = self._holder(source)
        self._arrive(back, target, source)
        if home != source:
            self._say("conntrack", f"{source} becomes {home} again")
        if back:
            self._route(Packet(target, home, self.inputs.links.get(back.mac, "")))
        return self._result(source, eni)

    def incoming(self) -> Trace:
        pod, peer, at, home = self.query.pod, self.query.peer, self.query.at, self.home
        address = at or home
        entry = self._holder(address)
        self._arrive(entry, peer, address)
        bound = 0
        if (at or pod is None) and entry:
            bound = self._mark_of(entry.device_index or 0)
            text = f"{address} is an address of this host: ct mark {bound:#x}, for this ENI"
            self._say("arrival", text)
        if at and pod:
            self._say("service", f"{at} is translated to {home}")
        if entry:
            self._route(Packet(peer, home, self.inputs.links.get(entry.mac, ""), bound))
        self._end("request")
        packet = Packet(home, peer)
        if pod:
            self._say("pod", f"{home} answers {peer}: {_default_route(pod, self.family)}")
            self._guard(pod)
            packet = Packet(home, peer, pod.veth, self._mark(pod, peer, bound))
        decision = self._route(packet)
        if address != home:
            self._say("conntrack", f"{home} becomes {address} again")
        return self._result(peer, self._leave(address, peer, decision))

    def _guard(self, pod: Attachment) -> None:
        links, home = self.tables.links, self.home  # as chain guard looks
        if links.get((pod.veth, None)) == FROM_POD and (pod.veth, home) not in links:
            self._refuse(
                "guard", f"{home} is no address of {pod.veth}: what carries it is dropped"
            )

    def _bind_outgoing(self, target: IpAddress) -> int:
        """Say what chain first does with a connection's first packet."""
        source, sets, mark = self.home, sets_of(self.family), 0
        if ruling := find_ruling(self.inputs, self.tables, source, target):
            mark = self._mark_of(ruling.device) if ruling.device is not None else 0
            self._say("snat", f"{ruling.text}{f'; ct mark {mark:#x}' if mark else ''}")
            return mark
        group, kept = self.tables.kept(source, target)
        no_snat = no_snat_of(self.family, group)
        if datapath.is_node_local(source):
            text = f"{source} means something on this node only: it leaves with the node's address"
        elif kept:
            element = f"in {no_snat} {print_range(*kept)}{why_kept(self.inputs, target, group)}"
            text = f"{target} sees the pod: {element}"
        elif self.tables.range_of(sets.pods, source) is None:
            text = f"{source} is in no set of pods; nothing is translated"
        else:
            mark = self._mark_of(0)
            why = f"not in {no_snat}{why_translated(self.inputs, target, group)}"
            text = f"{target} sees the node: {why}; ct mark {mark:#x}"
        self._say("snat", text)
        return mark

    def _source_seen(self, target: IpAddress, decision: Decision) -> IpAddress:
        """Say what chain source_nat does, and return the source that the receiver sees."""
        if self.query.pod is None:
            return self.home
        sets, links = sets_of(self.family), self.inputs.links
        source, by = self.primary.host_address(self.family.version), links.get(self.primary.mac)
        is_translated = datapath.is_node_local(self.home) or (
            self.tables.kept(self.home, target)[1] is None
            and self.tables.range_of(sets.pods, self.home) is not None
        )
        if ruling := find_ruling(self.inputs, self.tables, self.home, target):
            enis = (e for e in self.inputs.enis if e.device_index == ruling.device)
            source, by = ruling.source, next((links.get(e.mac) for e in enis), None)
            is_translated = True
        if source is None or decision.device != by or not is_translated:
            return self.home
        ports = self.inputs.document.snat.ports
        self._say("snat", f"source {self.home} becomes {source} ({ports} port)")
        return source

    def _mark(self, pod: Attachment, target: IpAddress, bound: int) -> int:
        """Say what chain route_mark does: the connection's ENI, else the pod's own."""
        sets, mark = sets_of(self.family), bound
        # As chain guard looks; where it knows no pod there, as chain own.
        name, verdict = sets.guarded, self.tables.links.get((pod.veth, self.home))
        if verdict in (None, OWN):
            name, verdict = sets.pod_eni, self.tables.verdicts.get((sets.pod_eni, self.home))
        devices = {chain_of(e.device_index or 0): e.device_index or 0 for e in self.inputs.enis}
        if by_main := self.tables.range_of(sets.by_main, target):
            mark = self._mark_of(0)
            why = f"the main table, for {sets.by_main} has {print_range(*by_main)}"
        elif bound:
            why = "the ENI that the connection is bound to"
        elif verdict in devices:
            mark = self._mark_of(devices[verdict])
            why = f"{name} has {self.home} : {verdict}"
        else:
            why = f"{name} does not know {self.home}"
        self._say("mark", f"{mark:#x}: {why}" if mark else f"none: {why}")
        return mark

    def _mark_of(self, device: int) -> int:
        return datapath.Marks(self.inputs.document.routing.mark_mask).of(device)

    def _route(self, packet: Packet) -> Decision:
        self.lookups.append((packet, decision := self.tables.look_up(packet)))
        self._say("route", str(decision))
        if decision.rule is None:
            self.troubles.append(f"no route leads from this node to {packet.destination}")
        return decision

    def _leave(self, source: IpAddress, target: IpAddress, decision: Decision) -> Eni | None:
        """Say how it leaves, and return the ENI, unless it stays."""
        link = decision.device
        eni = next((e for e in self.inputs.enis if self.inputs.links.get(e.mac) == link), None)
        if eni is None:
            if decision.rule:
                self._say("stays", f"on the node, dev {link}; {target} sees {source}")
            return None
        sets = sets_of(self.family)
        denied = self.tables.range_of(sets.no_metadata, self.home)
        if denied and target in INSTANCE_METADATA.values():
            self._refuse("refused", f"pods.metadata denies the pod {target}, instance metadata")
            return None
        ruling = find_ruling(self.inputs, self.tables, self.home, target)
        if self.query.pod and not self.query.inbound and ruling and ruling.refusal:
            self._refuse("refused", ruling.refusal)
            return None
        if self.tables.range_of(sets.held, target) and not self.tables.range_of(sets.pods, target):
            text = f"{target} is this node's, and no pod has it: the sender is told so at once"
            self._refuse("refused", text)
            return None
        self._say("leaves", f"by {_name(eni)}, dev {link}; {target} sees {source}")
        if not _holds(eni, source):
            self.troubles.append(
                f"the VPC drops it: {source} is no address of {_name(eni)} (source/dest check)"
            )
        private = any(target in c for c in (*self.inputs.node.vpc_cidrs, *PRIVATE))
        if self.family.private and not private and source != self.primary.primary:
            self.hints.append(
                f"{target} is beyond the VPC and sees {source}, which has no public address: its "
                "subnet's route table must lead to a NAT gateway, or to a peer that knows the way "
                "back"
            )
        return eni

    def _arrive(self, eni: Eni | None, peer: IpAddress, address: IpAddress) -> None:
        if eni is None:
            self.troubles.append(f"no ENI of this node has {address}; the VPC knows no way to it")
            return
        link = self.inputs.links.get(eni.mac, "a link that is not here")
        self._say("arrives", f"from {peer} for {address} by {_name(eni)}, dev {link}")

    def _holder(self, address: IpAddress) -> Eni | None:
        return next((e for e in self.inputs.enis if _holds(e, address)), None)

    def _say(self, about: str, text: str) -> None:
        self.steps.append(Step(about, text))

    def _refuse(self, about: str, text: str) -> None:
        self._say(about, text)
        self.troubles.append(text)

    def _end(self, name: str) -> None:
        self.legs.append(Leg(name, tuple(self.steps), tuple(self.lookups)))
        self.steps, self.lookups = [], []

    def _result(self, source: IpAddress, eni: Eni | None) -> Trace:
        self._end("reply")
        device = eni.device_index if eni else None
        return Trace(tuple(self.legs), source, device, tuple(self.troubles), tuple(self.hints))


def _default_route(pod: Attachment, family: datapath.Family) -> str:
    return f"default via {family.gateway} dev {pod.key.ifname}, to the host's {pod.veth}"


def _holds(eni: Eni, address: IpAddress) -> bool:
    return eni.holds(address) or address in (eni.primary, *eni.host_addresses)


def _name(eni: Eni) -> str:
    return f"ENI {eni.device_index} ({eni.eni_id})"
