"""What is known of the node: the values that planning starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.core.datapath import IpAddress, IpNetwork
from reconciler.core.pool import Demand
from schemas.document import NodeNetwork


@dataclass(frozen=True, slots=True)
class Node:
    """What the node knows of itself for free, from IMDS.

    Attributes:
        primary_mac: MAC of the primary ENI, lower case with colons.
        vpc_cidrs: every CIDR of the VPC now, ascending.
    """

    instance_id: str
    instance_type: str
    availability_zone: str
    primary_mac: str
    vpc_cidrs: tuple[IpNetwork, ...]


@dataclass(frozen=True, slots=True)
class Eni:
    """One elastic network interface as EC2 describes it.

    Attributes:
        device_index: place on the instance, 0 for the primary; None while not attached.
        status: EC2's word for the attachment (attaching, attached, detaching) or "available".
        primary: the address EC2 calls primary; it belongs to the host.
        secondaries: the addresses pods may get, ascending.
        owned: carries our tag for this instance, or is the primary.
    """

    eni_id: str
    mac: str
    device_index: int | None
    status: str
    subnet_id: str
    subnet_cidr: IpNetwork
    primary: IpAddress
    secondaries: tuple[IpAddress, ...]
    security_groups: tuple[str, ...]
    attachment_id: str | None = None
    delete_on_termination: bool = True
    owned: bool = True

    @property
    def gateway(self) -> IpAddress:
        """The VPC router in this subnet: base plus one (VPC user guide, "Subnet sizing")."""
        return self.subnet_cidr.network_address + 1

    @property
    def serves_pods(self) -> bool:
        """Attached and ours, so that its addresses may be given to pods."""
        return self.owned and self.status == "attached" and self.device_index is not None


@dataclass(frozen=True, slots=True)
class Links:
    """The links of the host namespace, by whose they are.

    Attributes:
        names: interface name by MAC, for links that are no veth of ours.
        pods: name of the host end by attachment, for veths of ours.
    """

    names: Mapping[str, str]
    pods: Mapping[AttachmentKey, str]


NO_DEMAND = Demand()


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything a domain's ``desire`` may look at.

    Attributes:
        enis: in device order, unattached last.
        links: interface name in the host namespace by MAC, for links that are no veth of ours.
        attachments: bound pods, those being released left out.
        now: seconds since the epoch, from the wall clock.
        demand: what the pool must cover.
        clear: attachments of which a look at the kernel has found nothing left.
        visit: the attachments whose own namespace is looked into; None means all of them. Host
            objects are always compared in full.
        blind: attachments whose namespace could not be read in this pass.
        pods: attachments that have a link on the host.
        strays: attachments that only the kernel remembers: their records were lost.
    """

    document: NodeNetwork
    node: Node
    enis: tuple[Eni, ...]
    links: Mapping[str, str]
    attachments: tuple[Attachment, ...] = ()
    now: float = 0.0
    demand: Demand = NO_DEMAND
    clear: frozenset[AttachmentKey] = frozenset()
    visit: frozenset[AttachmentKey] | None = None
    blind: frozenset[AttachmentKey] = frozenset()
    pods: frozenset[AttachmentKey] = frozenset()
    strays: tuple[Attachment, ...] = ()

    @property
    def visited(self) -> tuple[Attachment, ...]:
        """The attachments whose own namespace is to be compared, in order.

        A namespace that cannot be reached is not empty: nobody knows what is in it.
        """
        return tuple(
            a
            for a in self.attachments
            if a.netns_alive
            and a.key not in self.blind
            and (self.visit is None or a.key in self.visit)
        )

    @property
    def placed(self) -> tuple[Attachment, ...]:
        """The attachments that have, or can be given, objects on the host.

        Without its namespace a link cannot be made; one that is there is kept.
        """
        return tuple(a for a in self.attachments if a.netns_alive or a.key in self.pods)

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
