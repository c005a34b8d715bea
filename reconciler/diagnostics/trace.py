"""Trace: the way of one connection, read off the node's objects without sending a packet.

Pure. It walks rules, routes and sets as the kernel does, once over what is desired and once over
what the node has; ``reconciler.targets.netlink.target`` then asks the kernel the same questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network

from reconciler.core.attachment import Attachment
from reconciler.core.datapath import (
    ENI_PRIORITY,
    LOCAL_TABLE,
    MAIN_TABLE,
    MAX_DEVICE_INDEX,
    Family,
    IpAddress,
    Marks,
    family_of,
    is_node_local,
)
from reconciler.core.facts import Eni
from reconciler.core.ranges import Range, find, print_range, unite
from reconciler.diagnostics.lookup import Found, Packet
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat import NftElement, NftObject, chain_of, sets_of
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
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
class Decision:
    """What a lookup found.

    Attributes:
        rule: the one that led to the route; None if no rule did.
        route: None for an address of the host itself.
    """

    rule: Rule | None
    route: Route | None

    @property
    def device(self) -> str:
        """The link it leaves by; "lo" for what stays with the host."""
        return self.route.device if self.route else "lo" if self.rule else ""

    def __str__(self) -> str:
        if self.rule is None:
            return "no rule leads to a route"
        mark = "" if self.rule.mark is None else f" fwmark {self.rule.mark:#x}/{self.rule.mask:#x}"
        source = f" from {self.rule.source}" if self.rule.source else ""
        names = {LOCAL_TABLE: "local", MAIN_TABLE: "main"}
        table = names.get(self.rule.table, self.rule.table)
        rule = f"rule {self.rule.priority}:{source}{mark} lookup {table}"
        if self.route is None:
            return f"{rule}; an address of this host"
        via = f" via {self.route.gateway}" if self.route.gateway else ""
        everything = self.route.destination.prefixlen == 0
        destination = "default" if everything else self.route.destination
        return f"{rule}; route {destination}{via} dev {self.route.device}"


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


@dataclass(frozen=True, slots=True)
class Tables:
    """What is walked: desired objects, or observed ones.

    Attributes:
        rules: every rule of the host, foreign ones too.
        routes: every unicast route of the host, foreign ones too.
        addresses: the host's own.
        ranges: elements of our sets, by set.
        verdicts: of our maps' elements, by map and address.
    """

    rules: tuple[Rule, ...]
    routes: tuple[Route, ...]
    addresses: frozenset[IpAddress]
    ranges: Mapping[str, tuple[Range, ...]] = field(default_factory=dict)
    verdicts: Mapping[tuple[str, IpAddress], str] = field(default_factory=dict)

    def look_up(self, packet: Packet) -> Decision:
        """Walk the rules in order, and in each table the longest prefix with the least metric."""
        family = family_of(packet.destination).name
        for rule in self.rules:
            if rule.family != family or not _matches(rule, packet):
                continue
            if rule.table == LOCAL_TABLE:
                if packet.destination in self.addresses:
                    return Decision(rule, None)
                continue
            routes = [
                r
                for r in self.routes
                if r.table == rule.table
                and r.destination.version == packet.destination.version
                and packet.destination in r.destination
            ]
            if routes:
                return Decision(
                    rule, min(routes, key=lambda r: (-r.destination.prefixlen, r.metric))
                )
        return Decision(None, None)

    def range_of(self, name: str, address: IpAddress) -> Range | None:
        """Return the element of a set that holds an address."""
        return find(self.ranges.get(name, ()), address)


def make_tables(
    rules: Iterable[Rule],
    routes: Iterable[Route],
    nft: Iterable[NftObject],
    addresses: Iterable[IpAddress],
) -> Tables:
    """Order and index what is to be walked."""
    ranges: dict[str, list[Range]] = {}
    verdicts: dict[tuple[str, IpAddress], str] = {}
    for element in nft:
        if isinstance(element, NftElement):
            ranges.setdefault(element.set, []).append((element.first, element.last))
            verdicts[element.set, element.first] = element.goto
    return Tables(
        tuple(sorted(rules, key=lambda r: r.key)),
        tuple(r for r in routes if not r.netns),
        frozenset(addresses),
        {name: unite(r) for name, r in ranges.items()},
        verdicts,
    )


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


def compare(planned: Trace, actual: Trace, answers: Iterable[Found]) -> tuple[str, ...]:
    """Say where the node differs from what is desired, and the kernel from both.

    Args:
        planned: the walk over what is desired.
        actual: the walk over what the node has.
        answers: the kernel's, one for each lookup of ``planned``, in order.
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


UNASKED = ("FRA_IP_PROTO", "FRA_SPORT_RANGE", "FRA_DPORT_RANGE", "FRA_UID_RANGE", "FRA_TUN_ID")
"""Selectors of rules that the questions to the kernel leave out (linux/fib_rules.h)."""


def unasked(query: Query, rules: Iterable[Rule]) -> tuple[str, ...]:
    """Name rules ahead of ours that may take the packet, and that the kernel was not asked about.

    Args:
        query: the connection.
        rules: every rule of the host.
    """
    family = family_of(query.endpoint or query.peer).name
    found = sorted(
        (r.priority, [w.partition("=")[0] for w in r.extra.split(",")])
        for r in rules
        if r.family == family and r.priority < ENI_PRIORITY + MAX_DEVICE_INDEX
    )
    return tuple(
        f"ip rule {priority} selects by {', '.join(n for n in names if n in UNASKED)}, which the "
        "kernel was not asked about: it may take this connection elsewhere"
        for priority, names in found
        if any(n in UNASKED for n in names)
    )


def compare_inside(pod: Attachment, peer: IpAddress, answer: Found) -> tuple[str, ...]:
    """Say where a pod's own kernel sends its packets, if not to the host.

    Args:
        pod: whose namespace was asked.
        peer: where to.
        answer: the kernel's.
    """
    gateway, device = family_of(peer).gateway, pod.key.ifname
    if not answer.refusal and (answer.device, answer.gateway) == (device, gateway):
        return ()
    via = f" via {answer.gateway}" if answer.gateway else ""
    says = f"'{answer.refusal}'" if answer.refusal else f"dev {answer.device}{via}"
    return (
        f"in the pod, {Packet(None, peer).command}: the kernel says {says}, not dev {device} via "
        f"{gateway}; somebody in the pod has changed it (a sandbox such as gVisor does)",
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


def _matches(rule: Rule, packet: Packet) -> bool:
    """Whether a rule's selectors hold; those we do not know are left to the kernel's answer."""
    if rule.extra:
        return False
    if rule.mark is not None and packet.mark & rule.mask != rule.mark:
        return False
    return rule.source is None or (packet.source is not None and packet.source in rule.source)


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

    # -- connections that the node's side opens ----------------------------------------------

    def outgoing(self) -> Trace:
        pod, peer = self._query.pod, self._query.peer
        target = self._query.endpoint or peer
        if pod:
            self._say("pod", f"{self._home} sends to {peer}: {self._pod_link(pod)}")
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
        if pod is None or host is None or not by_primary or not self._is_translated(target):
            return self._home
        ports = self._inputs.document.snat.ports
        self._say("snat", f"source {self._home} becomes {host} ({ports} port)")
        return host

    def _is_translated(self, target: IpAddress) -> bool:
        sets = sets_of(self._family)
        return is_node_local(self._home) or (
            self._tables.range_of(sets.no_snat, target) is None
            and self._tables.range_of(sets.pods, self._home) is not None
        )

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

    # -- connections that the peer opens -------------------------------------------------------

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
            self._say("pod", f"{home} answers {peer}: {self._pod_link(pod)}")
            packet = Packet(home, peer, pod.veth, self._mark(home, peer, bound))
        decision = self._route(packet)
        eni = self._links.get(decision.device)
        answer = at or home
        if answer != home:
            self._say("conntrack", f"{home} becomes {answer} again")
        self._leave(eni, answer, peer, decision)
        return self._result((request, self._leg("reply")), peer, eni.device_index if eni else None)

    # -- what both have in common ------------------------------------------------------------

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

    def _pod_link(self, pod: Attachment) -> str:
        gateway = self._family.gateway
        return f"default via {gateway} dev {pod.key.ifname}, to the host's {pod.veth}"

    def _say(self, about: str, text: str) -> None:
        self._steps.append(Step(about, text))

    def _leg(self, name: str) -> Leg:
        leg = Leg(name, tuple(self._steps), tuple(self._lookups))
        self._steps, self._lookups = [], []
        return leg

    def _result(self, legs: tuple[Leg, ...], source: IpAddress, device: int | None) -> Trace:
        return Trace(legs, source, device, tuple(self._troubles), tuple(self._hints))


def _holds(eni: Eni, address: IpAddress) -> bool:
    return eni.holds(address) or address in (eni.primary, *eni.host_addresses)


def _name(eni: Eni) -> str:
    return f"ENI {eni.device_index} ({eni.eni_id})"
