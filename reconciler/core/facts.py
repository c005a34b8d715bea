"""What is known of the node and its ENIs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from reconciler.core.datapath import Family, IpAddress, IpNetwork


@dataclass(frozen=True, slots=True)
class Node:
    """What the node knows of itself for free, from IMDS.

    Attributes:
        primary_mac: MAC of the primary ENI, lower case with colons.
        vpc_cidrs: every CIDR of the VPC now, ascending.
        name: what the cluster calls it; "" if it is not set.
        subnet_cidrs: CIDRs of the primary ENI's subnet; of an earlier release's look none.
    """

    instance_id: str
    instance_type: str
    availability_zone: str
    primary_mac: str
    vpc_cidrs: tuple[IpNetwork, ...]
    name: str = ""
    subnet_cidrs: tuple[IpNetwork, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EniAddresses:
    """The addresses of an ENI: the host's own, and those for pods.

    Attributes:
        primary: the address EC2 calls primary; it belongs to the host.
        host_addresses: what belongs to the host beside ``primary``: single IPv6 addresses.
        secondaries: single addresses for pods, ascending.
        prefixes: delegated prefixes, whose addresses are all for pods; ascending.
        ipv6_prefixes: the same, of a family whose prefixes no node can use up (an IPv6 /80); they
            are not counted, never enumerated, and only released with the ENI.
    """

    subnet_id: str
    subnet_cidr: IpNetwork
    primary: IpAddress
    secondaries: tuple[IpAddress, ...]
    prefixes: tuple[IpNetwork, ...] = ()
    ipv6_prefixes: tuple[IpNetwork, ...] = ()
    host_addresses: tuple[IpAddress, ...] = ()

    @property
    def pod_addresses(self) -> tuple[IpAddress, ...]:
        """Every counted address a pod may get: single ones first, then those of prefixes."""
        return (*self.secondaries, *chain.from_iterable(map(_addresses, self.prefixes)))

    def holds(self, address: IpAddress) -> bool:
        """Whether EC2 gave it this address for a pod."""
        networks = (*self.prefixes, *self.ipv6_prefixes)
        return address in self.secondaries or any(address in n for n in networks)

    def host_address(self, version: int) -> IpAddress | None:
        """Return the host's own address of a family on this ENI."""
        own = (self.primary, *self.host_addresses)
        return next((a for a in own if a.version == version), None)

    @property
    def gateway(self) -> IpAddress:
        """The VPC router in this subnet: base plus one (VPC user guide, "Subnet sizing")."""
        return self.subnet_cidr.network_address + 1

    def router(self, family: Family) -> IpAddress:
        """Return the VPC router's address of a family on this ENI's wire."""
        return family.router or self.gateway


@dataclass(frozen=True, kw_only=True)
class EniTags:
    """What an ENI's tags say: whose it is, and how it came to be.

    Attributes:
        owned: carries our tag for this instance, or is the primary.
        creation: the token it was created with, "" if we did not create it.
        created_at: seconds since the epoch, None if no tag says so.
        stock: the stock plugin's, by its tag for this instance.
        stock_tags: keys of the stock plugin's tags, ascending.
    """

    owned: bool = True
    creation: str = ""
    created_at: float | None = None
    stock: bool = False
    stock_tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Eni(EniAddresses, EniTags):
    """One elastic network interface as EC2 describes it.

    Attributes:
        device_index: place on the first network card, the only one that is used; None while not
            attached.
        status: of the attachment in EC2 (attaching, attached, detaching), or "available".
        is_primary: the ENI that the instance began with, by its MAC. Device index 0 does not tell:
            each further network card may have one too.
    """

    eni_id: str
    mac: str
    device_index: int | None
    status: str
    security_groups: tuple[str, ...]
    attachment_id: str | None = None
    delete_on_termination: bool = True
    is_primary: bool = False

    @property
    def is_adoptable(self) -> bool:
        """The stock plugin's, attached here, and not ours yet."""
        return self.stock and not self.owned and self.device_index is not None

    @property
    def serves_pods(self) -> bool:
        """Attached and ours, so that its addresses may be given to pods."""
        return self.owned and self.status == "attached" and self.device_index is not None


@lru_cache(4096)
def _addresses(prefix: IpNetwork) -> tuple[IpAddress, ...]:
    """Return a prefix's addresses: sixteen, needed again with every observation."""
    return tuple(prefix)
