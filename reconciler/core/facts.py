"""What is known of the node and its ENIs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from reconciler.core.datapath import Family, IpAddress, IpNetwork


@dataclass(frozen=True, slots=True)
class Node:
    """What the node knows of itself for free, from IMDS."""

    instance_id: str
    instance_type: str
    availability_zone: str
    primary_mac: str  # MAC of the primary ENI, lower case with colons
    vpc_cidrs: tuple[IpNetwork, ...]  # every CIDR of the VPC now, ascending
    name: str = ""  # what the cluster calls it; "" if it is not set
    # CIDRs of the primary ENI's subnet; of an earlier release's look none
    subnet_cidrs: tuple[IpNetwork, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EniAddresses:
    """The addresses of an ENI: the host's own, and those for pods."""

    subnet_id: str
    subnet_cidr: IpNetwork
    primary: IpAddress  # the address EC2 calls primary; it belongs to the host
    secondaries: tuple[IpAddress, ...]  # single addresses for pods, ascending
    # delegated prefixes, whose addresses are all for pods; ascending
    prefixes: tuple[IpNetwork, ...] = ()
    # like ``prefixes``, of a family whose prefixes no node can use up (an IPv6 /80); they are not
    # counted, never enumerated, and only released with the ENI
    ipv6_prefixes: tuple[IpNetwork, ...] = ()
    # what belongs to the host beside ``primary``: single IPv6 addresses
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
    """What an ENI's tags say: whose it is, and how it came to be."""

    owned: bool = True  # carries our tag for this instance, or is the primary
    creation: str = ""  # the token it was created with, "" if we did not create it
    created_at: float | None = None  # seconds since the epoch, None if no tag says so
    stock: bool = False  # the stock plugin's, by its tag for this instance
    group: str = ""  # the pod group that it was made for; "" is that of no group
    stock_tags: tuple[str, ...] = ()  # keys of the stock plugin's tags, ascending


@dataclass(frozen=True, kw_only=True)
class Eni(EniAddresses, EniTags):
    """One elastic network interface as EC2 describes it."""

    eni_id: str
    mac: str
    # place on the first network card, the only one that is used; None while not attached
    device_index: int | None
    status: str  # of the attachment in EC2 (attaching, attached, detaching), or "available"
    security_groups: tuple[str, ...]
    attachment_id: str | None = None
    delete_on_termination: bool = True
    # the ENI that the instance began with, by its MAC. Device index 0 does not tell: each further
    # network card may have one too.
    is_primary: bool = False
    # of connections that EC2 tracks, in seconds: TCP established, UDP stream, UDP; 0 is EC2's own
    idle_timeouts: tuple[int, int, int] = (0, 0, 0)

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


CONFLIST = "10-node-network.conflist"
"""The name of the CNI configuration that is ours."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Directories and files of the host; one that is "" is not managed."""

    conf_dir: str = ""  # the runtime's directory of CNI configurations
    bin_dir: str = ""  # its directory of plugins
    program: str = ""  # our executable, as it was shipped
    state_dir: str = ""  # the records, as the executable on the host sees them
    tmpfiles_dir: str = ""  # a directory of tmpfiles.d(5)

    def __bool__(self) -> bool:
        return bool(self.conf_dir or self.bin_dir)


NOWHERE = Installation()


@dataclass(frozen=True, slots=True)
class ForwardChain:
    """A base chain of another owner that forwarded packets pass."""

    family: str  # nftables' word: ip, ip6 or inet
    table: str
    name: str
    backend: str = "nft"  # "nft", or "legacy" for what only iptables-legacy shows
    drops: bool = False  # its policy is to drop what no rule accepts
    shut: bool = False  # a rule in it drops or rejects every packet that reaches it
    # (iifname or oifname, pattern) of its rules that accept what comes from, or goes to, such
    # links; those behind a rule that shuts it do not count
    accepts: frozenset[tuple[str, str]] = frozenset()

    @property
    def path(self) -> str:
        """As ``nft`` names it."""
        return f"{self.family} {self.table} {self.name}"


def is_ours_to_open(chain: ForwardChain, families: frozenset[str]) -> bool:
    """Whether rules of ours can make this chain let pods' packets pass."""
    served = chain.family == "inet" or chain.family in families
    by_policy = chain.drops and not chain.shut
    return by_policy and chain.backend == "nft" and served


def covers(pattern: str, other: str) -> bool:
    """Whether every link name that ``other`` means is one that ``pattern`` means."""
    if pattern.endswith("*"):
        return other.removesuffix("*").startswith(pattern[:-1])
    return pattern == other
