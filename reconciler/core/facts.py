"""What is known of the node and its ENIs."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.datapath import IpAddress, IpNetwork


@dataclass(frozen=True, slots=True)
class Node:
    """What the node knows of itself for free, from IMDS.

    Attributes:
        primary_mac: MAC of the primary ENI, lower case with colons.
        vpc_cidrs: every CIDR of the VPC now, ascending.
        name: what the cluster calls it; "" if nobody said.
    """

    instance_id: str
    instance_type: str
    availability_zone: str
    primary_mac: str
    vpc_cidrs: tuple[IpNetwork, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Eni:
    """One elastic network interface as EC2 describes it.

    Attributes:
        device_index: place on the instance, 0 for the primary; None while not attached.
        status: EC2's word for the attachment (attaching, attached, detaching) or "available".
        primary: the address EC2 calls primary; it belongs to the host.
        secondaries: single addresses for pods, ascending.
        prefixes: delegated prefixes, whose addresses are all for pods; ascending.
        owned: carries our tag for this instance, or is the primary.
        creation: the token it was created with, "" if we did not create it.
        created_at: seconds since the epoch, None if nobody wrote it down.
        stock: the stock plugin's, by its tag for this instance.
        stock_tags: keys of the stock plugin's tags, ascending.
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
    prefixes: tuple[IpNetwork, ...] = ()
    creation: str = ""
    created_at: float | None = None
    stock: bool = False
    stock_tags: tuple[str, ...] = ()

    @property
    def pod_addresses(self) -> tuple[IpAddress, ...]:
        """Every address a pod may get: single ones first, then those of prefixes."""
        return (*self.secondaries, *(a for p in self.prefixes for a in p))

    @property
    def gateway(self) -> IpAddress:
        """The VPC router in this subnet: base plus one (VPC user guide, "Subnet sizing")."""
        return self.subnet_cidr.network_address + 1

    @property
    def is_adoptable(self) -> bool:
        """The stock plugin's, attached here, and not ours yet."""
        return self.stock and not self.owned and self.device_index is not None

    @property
    def serves_pods(self) -> bool:
        """Attached and ours, so that its addresses may be given to pods."""
        return self.owned and self.status == "attached" and self.device_index is not None
