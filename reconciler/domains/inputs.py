"""What planning starts from: the document, what is known of the node, and what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.core import datapath
from reconciler.core.attachment import Attachment, AttachmentKey, Intent
from reconciler.core.facts import NOWHERE, Eni, ForwardChain, Installation, Node
from reconciler.egress.destinations import NO_EGRESS, Egress
from reconciler.errors import Issue
from reconciler.ipam.allocation import Unexplained
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_status import NO_EC2, Ec2Inputs
from schemas.document import NodeNetwork


@dataclass(frozen=True, slots=True)
class Links:
    """The links of the host namespace, by whose they are.

    ``names``: interface name by MAC, for links that are no veth of ours. ``pods``: name of the
    host end by attachment, for veths of ours. ``macs``: of those host ends, by name.
    """

    names: Mapping[str, str]
    pods: Mapping[AttachmentKey, str]
    macs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KernelState:
    """What an observation of the kernel says of attachments, and who waits for it.

    Attributes:
        clear: those of which it has found nothing left.
        finished: those of which it has found everything in place.
        visit: those whose own namespace is looked into, and put right; None means all of them.
            Host objects are always compared in full.
        unreadable: those whose namespace could not be read, now or a short while ago.
        dead: those whose namespace is gone for so long that no DEL will come.
        unrecorded: those that only the kernel remembers: their records were lost.
        unexplained: links of ours of which not even the kernel says which address they have.
        asking: those whose ADD waits, in the order in which they came.
    """

    linked: frozenset[AttachmentKey] = frozenset()
    clear: frozenset[AttachmentKey] = frozenset()
    finished: frozenset[AttachmentKey] = frozenset()
    visit: frozenset[AttachmentKey] | None = None
    unreadable: frozenset[AttachmentKey] = frozenset()
    dead: frozenset[AttachmentKey] = frozenset()
    flows: frozenset[datapath.IpAddress] = frozenset()
    unrecorded: tuple[Attachment, ...] = ()
    unexplained: tuple[Unexplained, ...] = ()
    asking: tuple[AttachmentKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Predecessor:
    """What amazon-vpc-cni-k8s, the stock plugin, has left, and what is done about it."""

    taking_over: bool = False  # the document asks for it, and its daemon does not run
    # addresses of its pods that no attachment of ours explains
    held: frozenset[datapath.IpAddress] = frozenset()
    # those pods as attachments and intents of ours; all of them, or none yet
    adoptions: tuple[tuple[Attachment, Intent], ...] = ()
    # why its objects may not go, although the document asks for it
    refusals: tuple[Issue, ...] = ()
    unread: bool = False  # its objects have never been read, so no address is known to be free


NO_PREDECESSOR = Predecessor()


@dataclass(frozen=True, slots=True)
class HostState:
    """What is on the host beside pods and ENIs.

    ``occupied``: what the host takes for its own of the addresses that ENIs hold for pods, each
    with where that is said. ``reserved``: what no pod is given either, by the document, as far
    as ENIs hold any of it. ``predecessor``: what the stock plugin has left, and what becomes of
    it. ``installation``: what of ours belongs there, and where. ``egress``: what the document's
    sources of destinations stand for. ``source_filters``: ``rp_filter`` of all links and of the
    primary's, by name, as far as they could be read.
    """

    occupied: Mapping[datapath.IpNetwork, str] = field(default_factory=dict)
    reserved: frozenset[datapath.IpNetwork] = frozenset()
    forward: tuple[ForwardChain, ...] = ()
    predecessor: Predecessor = NO_PREDECESSOR
    installation: Installation = NOWHERE
    egress: Egress = NO_EGRESS
    source_filters: Mapping[str, str] = field(default_factory=dict)

    @property
    def withheld(self) -> frozenset[datapath.IpNetwork]:
        """What no pod is given, for either reason."""
        return self.reserved.union(self.occupied)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything a domain's ``desire`` may look at.

    Attributes:
        enis: in device order, unattached last.
        links: interface name in the host namespace by MAC, for links that are no veth of ours.
        attachments: bound pods, those being released left out; unrecorded ones included.
        left_out: bound pods of which a domain must not see more than that they are there: their
            data makes it raise.
        now: seconds since the epoch, from the wall clock; for records only.
        clock: monotonic seconds; for all that lives in memory.
    """

    document: NodeNetwork
    node: Node
    enis: tuple[Eni, ...]
    links: Mapping[str, str]
    attachments: tuple[Attachment, ...] = ()
    left_out: tuple[Attachment, ...] = ()
    now: float = 0.0
    clock: float = 0.0
    demand: Demand = field(default_factory=Demand)
    ec2: Ec2Inputs = NO_EC2
    kernel: KernelState = field(default_factory=KernelState)
    host: HostState = field(default_factory=HostState)

    def seeing(self, **changes: Any) -> Inputs:  # fields of ``KernelState``
        """Return the same with some fields of ``kernel`` replaced."""
        return replace(self, kernel=replace(self.kernel, **changes))

    def holding(
        self, attachments: tuple[Attachment, ...], identities: tuple[EgressIdentity, ...]
    ) -> Inputs:
        """Return the same with what pods and namespaces have now."""
        return replace(self, attachments=attachments, ec2=replace(self.ec2, identities=identities))

    @property
    def primary(self) -> Eni | None:
        return next((e for e in self.enis if e.is_primary), None)

    @property
    def egress(self) -> tuple[str, ...]:
        """Families of which pods get an address for egress: those the node itself has one of."""
        primary = self.primary
        return tuple(
            name
            for name in self.document.egress_families
            if primary is not None
            and primary.host_address(datapath.FAMILIES[name].version) is not None
        )

    @property
    def everybody(self) -> tuple[Attachment, ...]:
        """All bound pods: what they share is kept for those that are left out, too."""
        return (*self.attachments, *self.left_out)

    @property
    def families(self) -> tuple[str, ...]:
        """Families there are packets of: the document's, and those that pods still have.

        A change of the document never takes an address from a running pod.
        """
        held = sorted(
            {datapath.family_of(a).name for pod in self.everybody for a in pod.addresses}
        )
        named = (*self.document.families, *self.document.egress_families)
        return tuple(dict.fromkeys((*named, *held)))

    def families_of(self, eni: Eni) -> tuple[datapath.Family, ...]:
        """Families that an ENI carries: that of the host's address on it, and the pods'."""
        names = dict.fromkeys((datapath.family_of(eni.primary).name, *self.families))
        return tuple(datapath.FAMILIES[name] for name in names)

    @property
    def local_families(self) -> tuple[str, ...]:
        """Families of which pods have, or will get, addresses that are valid on this node only."""
        held = {
            datapath.family_of(a).name
            for pod in self.everybody
            for a in pod.addresses
            if datapath.is_node_local(a)
        }
        return tuple(dict.fromkeys((*self.document.egress_families, *sorted(held))))

    @property
    def visited(self) -> tuple[Attachment, ...]:
        """The attachments whose own namespace is to be compared, in order.

        A namespace that cannot be reached is not empty: its content is unknown.
        """
        return tuple(
            a
            for a in self.attachments
            if a.netns_alive
            and a.key not in self.kernel.unreadable
            and (self.kernel.visit is None or a.key in self.kernel.visit)
        )

    @property
    def placed(self) -> tuple[Attachment, ...]:
        """The attachments that have, or can be given, objects on the host.

        Without its namespace a link cannot be made; one that is there is kept.
        """
        return tuple(a for a in self.attachments if a.netns_alive or a.key in self.kernel.linked)

    @property
    def veth_patterns(self) -> frozenset[str]:
        """What names the host ends of pods' links: ``prefix*``, or a name in full.

        Links of pods that started under another prefix keep their names.
        """
        prefix = self.document.pods.veth_prefix
        others = {a.veth for a in self.everybody if not a.veth.startswith(prefix)}
        return frozenset({f"{prefix}*"} | others)

    @property
    def pod_enis(self) -> tuple[tuple[Eni, str], ...]:
        """ENIs that serve pods and whose link is here, with the link's name; device order.

        EC2 says "attached" up to seconds before or after the link appears, so both are asked.
        """
        return tuple(
            (eni, self.links[eni.mac])
            for eni in self.enis
            if eni.serves_pods and eni.mac in self.links
        )
