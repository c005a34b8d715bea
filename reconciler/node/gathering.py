"""What is known of the node, and the inputs of a pass gathered from it and completed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from reconciler.core.attachment import MAX_POD_ADDRESSES, Attachment, AttachmentKey, IntentState
from reconciler.core.datapath import IpAddress, IpNetwork
from reconciler.core.facts import Eni, Node
from reconciler.diagnostics.stock_objects import OWNER
from reconciler.domains.inputs import HostState, Inputs, KernelState
from reconciler.domains.sysctl import Sysctl, source_filters
from reconciler.egress.destinations import Egress
from reconciler.errors import ConflictError, NotReadyError, ReconcilerError, boundary
from reconciler.ipam.allocation import Unexplained
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.pool_groups import demand_of, demands
from reconciler.ipam.pool_plan import adopted
from reconciler.ipam.pool_status import Ec2Inputs
from reconciler.ipam.records import Records, believe, find_copies, find_unrecorded
from reconciler.ipam.release import unit_networks
from reconciler.node.environment import Environment, State
from reconciler.node.stock_plugin import StockPlugin
from schemas.apart import Documents, Here
from schemas.document import NodeNetwork
from schemas.problem import DocumentError, UncheckedError

Routed = Mapping[str, tuple[IpAddress, ...]]  # addresses of pods by host end, as their routes say

NodeNames = tuple[str, str, str]  # instance type, zone and name, which overrides match

GONE_S = 10.0
"""Seconds for which a pod's namespace and link must both be gone before its attachment is released
without a DEL: between the two a runtime may have lost it for good."""


class Known:
    """Who the node is, what EC2 has last shown, of sources too, and the effective document.

    The loops work on it; each value is replaced as a whole. ``state`` remembers it from one
    process to the next. None is what has never been answered or observed.
    """

    def __init__(self, state: State, documents: Documents | None = None) -> None:
        self._state, self._documents = state, documents or Here()
        self._remembered: tuple[Node | None, Cloud | None] = state.recall() or (None, None)
        self.facts: Node | None = self._remembered[0]
        self.cloud: Cloud | None = self._remembered[1]
        self.egress: Egress = state.recall_egress()
        self.kubelet_pods: int | None = None  # that kubelet takes, by the Node object
        self._applied: tuple[NodeNetwork, NodeNames, NodeNetwork | DocumentError] | None = None
        self._resolved: tuple[NodeNetwork, tuple[Node, int | None], NodeNetwork] | None = None

    def identify(self, facts: Node) -> None:
        """Take over what metadata says the node is."""
        before, self.facts = self.facts, facts
        if before is not None and before.instance_id != facts.instance_id:
            self.cloud = None  # an image was made of another instance, with its last look in it

    def see(self, cloud: Cloud) -> None:
        """Take over an observation of EC2."""
        self.cloud = cloud

    def learn_pods(self, most: int) -> None:
        """Take over how many pods kubelet takes, for ``maxPods: auto``."""
        self.kubelet_pods = most

    def learn(self, egress: Egress) -> None:
        """Take over what is known of the document's sources."""
        self.egress = egress

    def remember(self) -> None:
        """Keep what is known for the next process; raises ``StateError`` if that fails."""
        facts, cloud = self.facts, self.cloud
        if facts is not None and cloud is not None and self._remembered != (facts, cloud):
            self._state.remember(facts, cloud)
            self._remembered = (facts, cloud)

    def observation(self) -> Cloud:
        """Return the last observation of EC2; raise ``NotReadyError`` if there was none yet."""
        if (cloud := self.cloud) is None:
            raise NotReadyError("EC2 has not been observed yet, so the node's ENIs are unknown")
        return cloud

    def identity(self) -> Node:
        """Return who the node is; raise ``NotReadyError`` if metadata has not answered yet."""
        if (facts := self.facts) is None:
            raise NotReadyError("instance metadata has not answered yet")
        return facts

    def prepare(self, document: NodeNetwork) -> None:
        """Apply the overrides of a document that comes into force, so that no pass waits for it.

        While it is not known which node this is, the first pass does that.

        Raises:
            UncheckedError: what checks the document has not answered.
        """
        if (facts := self.facts) is not None:
            self._apply(document, facts)

    def resolve(self, document: NodeNetwork) -> NodeNetwork:
        """Apply the document's overrides for this node, and what kubelet says of itself.

        Raises:
            NotReadyError: it is not known yet which node this is, or what checks the document
                has not answered.
            ConflictError: overrides that match this node contradict each other.
        """
        facts, pods, known = self.identity(), self.kubelet_pods, self._resolved
        if known is not None and known[0] is document and known[1] == (facts, pods):
            return known[2]  # of 10,000 CIDRs it takes a tenth of a second, for each pass
        try:
            resolved = self._apply(document, facts)
        except UncheckedError as error:
            raise NotReadyError(str(error)) from error
        if isinstance(resolved, DocumentError):
            raise ConflictError(str(resolved)) from resolved
        if resolved.max_pods == "auto" and pods is not None:
            resolved = resolved.model_copy(update={"max_pods": pods})
        self._resolved = document, (facts, pods), resolved
        return resolved

    def _apply(self, document: NodeNetwork, facts: Node) -> NodeNetwork | DocumentError:
        """Return what overrides make of a document here, or how they contradict each other.

        It may take another process a minute, so the last answer is kept.
        """
        names, last = (facts.instance_type, facts.availability_zone, facts.name), self._applied
        if last is not None and last[0] is document and last[1] == names:
            return last[2]
        applied: NodeNetwork | DocumentError
        try:
            applied = self._documents.resolve(
                document, instance_type=names[0], zone=names[1], node_name=names[2]
            )
        except UncheckedError:
            raise
        except DocumentError as error:
            applied = error
        self._applied = document, names, applied
        return applied


class Gathering:
    """Gathers what both kinds of pass plan on."""

    def __init__(self, environment: Environment, known: Known, stock: StockPlugin) -> None:
        self._environment = environment
        self._known = known
        self._stock = stock

    def inputs(
        self,
        document: NodeNetwork,
        records: Records,
        cloud: Cloud | None,
        routed: Routed | None = None,
        *,
        rehearsal: bool = False,
    ) -> Inputs:
        """Gather the inputs; for a rehearsal, as if EC2 had done already what it will be asked.

        The last observation is handed over, because the pool's thread may replace it; and pods'
        addresses, if their routes were read already.

        Raises:
            NotReadyError: metadata has not answered yet.
            ObserveError: the kernel could not be read.
            ConflictError: overrides that match this node contradict each other.
        """
        node, netlink = self._known.identity(), self._environment.netlink
        now, clock = self._environment.now(), self._environment.clock()
        enis: tuple[Eni, ...] = cloud.enis if cloud else ()
        links = netlink.links()
        known = {a.key for a in records.attachments}
        # A link that a record names is that record's, whatever its alias has become.
        veths = {a.veth for a in records.attachments}
        unexplained = {k: v for k, v in links.pods.items() if k not in known and v not in veths}
        addresses = self._addresses_of(list(unexplained.values()), enis, records, routed)
        unrecorded = find_unrecorded(unexplained, addresses, enis, records.intents, links.macs)
        records = records.joined(unrecorded)
        document = self._known.resolve(document)
        asked = document.take_over == OWNER
        if rehearsal and asked:
            enis = tuple(adopted(e) if e.is_adoptable else e for e in enis)
        return Inputs(
            document=document,
            node=node,
            enis=enis,
            links=links.names,
            attachments=without_copies(records.living, links.pods),
            now=now,
            clock=clock,
            demand=demand_of(records, document),
            ec2=Ec2Inputs(
                quarantined=frozenset(q.network for q in records.quarantined),
                identities=records.identities,
            ),
            kernel=KernelState(
                linked=frozenset(links.pods),
                unrecorded=unrecorded,
                unexplained=tuple(
                    Unexplained(key, veth, links.macs.get(veth, ""))
                    for key, veth in sorted(unexplained.items())
                    if veth not in addresses and key not in records.released
                ),
            ),
            host=HostState(
                occupied=netlink.occupied(
                    {a for e in enis for a in e.pod_addresses},
                    {n for e in enis for n in e.ipv6_prefixes},
                ),
                reserved=frozenset(
                    n for n in document.reserved_addresses if any(_overlaps(n, e) for e in enis)
                ),
                egress=self._known.egress,
                predecessor=self._stock.consider(records, enis, asked=asked, now=clock),
                source_filters=self._source_filters(links.names.get(node.primary_mac, "")),
            ),
        )

    def _source_filters(self, primary: str) -> dict[str, str]:
        found: Iterable[object] = ()
        with suppress(ReconcilerError), boundary("observe of rp_filter"):
            found = self._environment.sysctl.observe(source_filters(primary))
        return {s.name.split("/")[3]: s.value for s in found if isinstance(s, Sysctl)}

    def _addresses_of(
        self, links: list[str], enis: Iterable[Eni], records: Records, routed: Routed | None
    ) -> dict[str, tuple[IpAddress, ...]]:
        """Find out which addresses pods have whose links no record explains."""
        if not links:
            return {}
        netlink = self._environment.netlink
        if routed is None:
            routed = netlink.pod_addresses()
        found = {veth: a for veth, a in routed.items() if len(a) <= MAX_POD_ADDRESSES}
        taken = {own for a in records.attachments for own in a.addresses}
        taken |= {own for addresses in found.values() for own in addresses}
        if dumb := [veth for veth in links if veth not in found]:
            for link, candidates in netlink.addresses_behind(dumb).items():
                if believed := believe(candidates, enis, taken):
                    found[link] = believed
                    taken.update(believed)
        return found


def _overlaps(network: IpNetwork, eni: Eni) -> bool:
    return any(
        network.version == held.version and network.overlaps(held) for held in unit_networks(eni)
    )


def complete(inputs: Inputs, records: Records, routed: Routed, enis: Sequence[Eni]) -> Inputs:
    """Add to the inputs what only the pool's planner looks at: all that says an address is used.

    Before EC2 was observed there are no ENIs.
    """
    used = {c.address for c in records.cooling}
    used |= {a for bound in records.attachments for a in bound.addresses}
    used |= records.withheld(inputs.now)
    used |= {a for held in routed.values() for a in held}
    elsewhere = inputs.host.predecessor.held
    # Those on ENIs that are not ours are neither held by us nor asked of us.
    ours = {a for e in enis if e.serves_pods for a in e.pod_addresses}
    # What the host takes for its own serves no pod, and is in use.
    host = inputs.host.withheld
    occupied = {a for a in ours - used if any(a in n for n in host)}
    used |= occupied
    if any(len(held) > MAX_POD_ADDRESSES for held in routed.values()):
        # Routes are added without end, so any address may be in use: none is given back.
        used |= ours | {n.network_address for e in enis for n in e.ipv6_prefixes}
    # From the records: inputs may be completed more than once, with newer ones.
    demand = demand_of(records, inputs.document)
    pending = [q for q in records.quarantined if q.is_pending(inputs.now)]
    ec2 = replace(
        inputs.ec2,
        used=frozenset(used | elsewhere),
        quarantined=frozenset(q.network for q in records.quarantined),
        maybe_released=frozenset(q.network for q in pending),
        creations=records.creations,
        demands=demands(records, demand, inputs.document, enis, elsewhere & ours | occupied),
    )
    demand = replace(demand, assigned=demand.assigned + len(elsewhere & ours | occupied))
    return replace(inputs, attachments=records.attachments, demand=demand, ec2=ec2)


class DeadPods:
    """Attachments of which namespace and link have been gone for a while."""

    def __init__(self) -> None:
        # when those that were seen so are released if no DEL comes; monotonic seconds
        self.until: Mapping[AttachmentKey, float] = {}

    def find(self, records: Records, inputs: Inputs) -> frozenset[AttachmentKey]:
        """Return those for which no DEL will come, whether an intent still wants them or not."""
        asked = {i.key for i in records.intents}
        dead = {
            i.key for i in records.intents if i.state is IntentState.WANTED and not i.netns_alive
        }
        dead |= {a.key for a in records.attachments if a.key not in asked and not a.netns_alive}
        gone_at = inputs.clock + GONE_S
        self.until = {key: self.until.get(key, gone_at) for key in dead - inputs.kernel.linked}
        return frozenset(key for key, until in self.until.items() if until <= inputs.clock)


def without_copies(
    attachments: Sequence[Attachment], linked: Iterable[AttachmentKey]
) -> tuple[Attachment, ...]:
    """Leave out attachments that name a link or an address that another has."""
    copies = find_copies(attachments, frozenset(linked))
    return tuple(a for a in attachments if a.key not in copies)
