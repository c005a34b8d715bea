"""One observation of EC2: ENIs and subnets, the tags that say whose an ENI is.

And where the next ENI goes.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from itertools import chain

from reconciler.core.datapath import IpNetwork
from reconciler.core.facts import Eni

INSTANCE_TAG = "node-network/instance"
"""Marks an ENI as ours, and says whose. A tag of our own: by its own the stock plugin would find
ENIs of ours (its nodes delete any that are detached), and we would take its for ours unasked."""

UNMANAGED_TAG = "node.k8s.amazonaws.com/no_manage"
"""With value "true": foreign, whatever else it carries (stock plugin's tag)."""

CREATED_TAG = "node-network/created"
"""RFC 3339; lets a collector of leaked ENIs tell old from new."""

CLUSTER_TAG = "cluster.k8s.amazonaws.com/name"
"""Which cluster's nodes may collect it once it is leaked (stock plugin's tag)."""

NODE_TAG = "node-network/node"
"""Name of the node that created it."""

CREATION_TAG = "node-network/creation"
"""The ClientToken of its creation, so that a record and its ENI find each other."""

GROUP_TAG = "node-network/group"
"""Name of the pod group that it serves; without it, the pods of no group."""

STOCK_INSTANCE_TAG = "node.k8s.amazonaws.com/instance_id"
"""Marks an ENI as the stock plugin's (amazon-vpc-cni-k8s ``pkg/awsutils/awsutils.go``). Every node
that runs it deletes ENIs with this tag that are attached to nothing."""

STOCK_TAGS = ("node.k8s.amazonaws.com/", "eks:eni:owner")
"""How the keys of the stock plugin's tags begin. ``no_manage`` addresses both plugins, and the
cluster's tag holds under either. Source as above."""


PREFIX_SIZE = 16
"""Addresses in a delegated IPv4 prefix, a /28 (EC2 user guide, "Prefix delegation")."""

RESERVED_LOW = 4
"""Network, router, DNS, future use; the broadcast address is reserved too (VPC user guide,
"Subnet sizing")."""


def is_stock_tag(key: str) -> bool:
    """Whether a tag is the stock plugin's own mark."""
    return key.startswith(STOCK_TAGS) and key != UNMANAGED_TAG


@dataclass(frozen=True, slots=True)
class Limits:
    """What the instance type allows.

    ``addresses_per_eni``: IPv4 addresses of one ENI, its primary included; a prefix counts as one.
    """

    enis: int
    addresses_per_eni: int

    @property
    def slots(self) -> int:
        """What an ENI can hold beside its primary address."""
        return self.addresses_per_eni - 1


@dataclass(frozen=True, slots=True)
class Unread:
    """An object that EC2 listed and that could not be read.

    ``kind``: "eni", "subnet" or "instance-type". ``name``: its id; "" if not even that could be
    read. ``device_index``: of an ENI, if it could be read.
    """

    kind: str
    name: str
    why: str
    device_index: int | None = None


@dataclass(frozen=True, slots=True)
class Reserved:
    """IPv4 CIDR reservations of a subnet (VPC user guide, "Subnet CIDR reservations").

    Attributes:
        prefixes: where EC2 takes /28 blocks from; where there is one, from nowhere else (EC2 user
            guide, "Prefix delegation for Amazon EC2 network interfaces").
        explicit: given only to those who name an address.
    """

    prefixes: tuple[IPv4Network, ...] = ()
    explicit: tuple[IPv4Network, ...] = ()


NOTHING_RESERVED = Reserved()


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet as EC2 describes it.

    Attributes:
        free: addresses EC2 could still give out.
        blocks: whole aligned /28 blocks left; None until they are counted.
        blocks_apart: they are in CIDR reservations, and ``free`` has none of their addresses.
        reservations_unknown: why its CIDR reservations are not known; "" if they are, or if
            nothing depends on them.
        tags: pairs in key order.
        families: those it has a CIDR block of.
        vpc_id: of its VPC; "" in a look of an earlier release.
        is_described: EC2 was asked about it; if not, ``free`` and ``blocks`` are upper bounds, and
            EC2 refuses what it does not have.
    """

    subnet_id: str
    zone: str
    cidr: IpNetwork
    free: int
    blocks: int | None = None
    tags: tuple[tuple[str, str], ...] = ()
    families: tuple[str, ...] = ("ipv4",)
    vpc_id: str = ""
    is_described: bool = True
    blocks_apart: bool = False
    reservations_unknown: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which subnets new ENIs may go to, in order, and why the others may not.

    ``rejected``: (subnet id, reason).
    """

    subnets: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OtherCard:
    """An ENI on another network card than the first: it is left alone, and its place is no ENI's.

    ``device_index``: counted anew on each card; None if EC2 does not say it. ``kind``: EC2's word
    for its type.
    """

    eni_id: str
    card: int
    device_index: int | None
    kind: str


@dataclass(frozen=True, slots=True)
class Cloud:
    """One observation of EC2.

    Attributes:
        enis: attached to this instance or ours; device order, unattached last. Those on the first
            network card alone.
        other_cards: ENIs of this instance on the others.
        limits: None if EC2 does not tell, or does not know the instance type.
        subnets: by id: those of the ENIs, and those that the document names.
        behind: EC2 does not list yet, or any more, what it answered moments ago.
    """

    enis: tuple[Eni, ...]
    limits: Limits | None
    subnets: Mapping[str, Subnet]
    behind: bool = False
    unread: tuple[Unread, ...] = ()
    other_cards: tuple[OtherCard, ...] = ()

    @property
    def primary(self) -> Eni | None:
        """The ENI that the instance began with; None if EC2 does not show it."""
        return next((e for e in self.enis if e.is_primary), None)

    @property
    def unread_enis(self) -> tuple[Unread, ...]:
        return tuple(u for u in self.unread if u.kind == "eni")


def is_whole(cloud: Cloud, holders: Container[str]) -> bool:
    """Whether a first observation is good enough to plan the kernel on.

    Without the primary ENI there is no datapath. Without an ENI that pods have addresses of, their
    routes and rules would be removed.

    ``holders``: ids of ENIs that pods have addresses of.
    """
    unread = cloud.unread_enis
    return cloud.primary is not None and not any(u.name in holders or not u.name for u in unread)


def arrived(cloud: Cloud, macs: Container[str]) -> Cloud:
    """Take an attachment for done once its link is on the node.

    EC2's list says so seconds later, and asking for it costs a call. The link is what packets
    need.

    ``macs``: of the links that are on the node.
    """
    enis = tuple(
        replace(e, status="attached") if e.status == "attaching" and e.mac in macs else e
        for e in cloud.enis
    )
    return replace(cloud, enis=enis) if enis != cloud.enis else cloud


def retain(before: Cloud, now: Cloud, macs: Container[str]) -> Cloud:
    """Keep ENIs that served pods and are missing now, while their links are on the node.

    A shrinking observation is unknown, not gone: EC2 is eventually consistent, and a short answer,
    or one from before an attachment, would take down the routes of running pods. A kept ENI serves
    the pods it has; its addresses are given to no others.

    ``macs``: of the links that are on the node.
    """
    serving = {e.eni_id for e in now.enis if e.serves_pods}
    kept = {
        e.eni_id: replace(e, secondaries=(), prefixes=(), ipv6_prefixes=())
        for e in before.enis
        if e.serves_pods and e.eni_id not in serving and e.mac in macs
    }
    return replace(now, enis=(*(e for e in now.enis if e.eni_id not in kept), *kept.values()))


def from_metadata(
    shown: Iterable[tuple[Eni, Subnet]], before: Iterable[Eni], limits: Limits | None
) -> Cloud:
    """Return what instance metadata shows as an observation; EC2 is not asked.

    ``shown``: ENIs with their subnets. ``before``: as last observed; what only EC2 tells of an
    ENI, such as whose it is, is taken from there.
    """
    known = {e.eni_id: e for e in before}
    enis, subnets = [], {}
    for eni, subnet in shown:
        subnets[subnet.subnet_id] = subnet
        if earlier := known.get(eni.eni_id):
            eni = replace(
                earlier,
                **{name: getattr(eni, name) for name in SHOWN_BY_METADATA},
            )
        enis.append(eni)
    return Cloud(tuple(enis), limits, subnets)


SHOWN_BY_METADATA = (
    "device_index",
    "status",
    "secondaries",
    "security_groups",
    "prefixes",
    "ipv6_prefixes",
    "host_addresses",
)
"""Fields of an ENI that change and that instance metadata shows."""


def free_blocks(
    cidr: IpNetwork, taken: Collection[int], reserved: Reserved = NOTHING_RESERVED
) -> int:
    """Count aligned /28 blocks of an IPv4 subnet that EC2 would choose from.

    They hold no address in use, nor one that is EC2's own or somebody's by name.

    ``taken``: numbers of the addresses in use, those inside prefixes included.
    """
    if not isinstance(cidr, IPv4Network):
        return 0
    first, last = int(cidr.network_address), int(cidr.broadcast_address)
    broken = {number // PREFIX_SIZE for number in taken}
    broken |= {number // PREFIX_SIZE for number in (*range(first, first + RESERVED_LOW), last)}
    broken.update(*(_blocks(network, outside=True) for network in reserved.explicit))
    whole = set(range(first // PREFIX_SIZE, last // PREFIX_SIZE + 1))
    if reserved.prefixes:
        whole.intersection_update(chain(*(_blocks(network) for network in reserved.prefixes)))
    return len(whole - broken)


def _blocks(network: IPv4Network, *, outside: bool = False) -> range:
    """Return numbers of aligned /28 blocks inside a network, or those that it has a part of."""
    first, beyond = int(network.network_address), int(network.broadcast_address) + 1
    more = PREFIX_SIZE - 1
    low, high = (first, beyond + more) if outside else (first + more, beyond)
    return range(low // PREFIX_SIZE, high // PREFIX_SIZE)


def is_excluded(subnet: Subnet, excluded: Collection[tuple[str, str]]) -> bool:
    """Whether a subnet has all of the tags that exclude subnets."""
    return bool(excluded) and set(excluded) <= set(subnet.tags)


def choose(
    known: Mapping[str, Subnet],
    *,
    zone: str,
    primary: str,
    listed: tuple[str, ...],
    selector: tuple[tuple[str, str], ...],
    excluded: tuple[tuple[str, str], ...] = (),
    by_room: bool = False,
    families: Collection[str] = ("ipv4",),
) -> Choice:
    """Say where new ENIs may go.

    An ENI can only be attached in its instance's zone and VPC (EC2 user guide, "Elastic network
    interfaces"), and the host's own address on it is of IPv4. A selector's subnets are tried in
    the order of their free space, most first.

    ``primary``: the primary ENI's subnet, where ENIs go when the document names none.
    ``excluded``: tags of subnets that are not used. ``by_room``: listed ones too are tried in the
    order of their free space.
    """
    if selector:
        wanted = set(selector)
        names = tuple(s.subnet_id for s in known.values() if wanted <= set(s.tags))
    else:
        names = listed or (primary,)
    if selector or by_room:
        room = {
            name: s.free + (s.blocks or 0) * PREFIX_SIZE * s.blocks_apart
            for name, s in known.items()
        }
        names = tuple(sorted(names, key=lambda name: (-room.get(name, 0), name)))
    home = known.get(primary)
    needed = dict.fromkeys(("ipv4", *families))
    chosen, rejected = [], []
    for name in filter(None, names):
        subnet = known.get(name)
        if subnet is None:
            rejected.append((name, "EC2 does not know it"))
        elif home is not None and subnet.vpc_id != home.vpc_id:
            rejected.append((name, f"in VPC {subnet.vpc_id}, the node is in {home.vpc_id}"))
        elif is_excluded(subnet, excluded):
            rejected.append((name, "its tags exclude it (eni.excludeSubnetTags)"))
        elif subnet.zone != zone:
            rejected.append((name, f"in zone {subnet.zone}, the node is in {zone}"))
        elif missing := [f for f in needed if f not in subnet.families]:
            rejected.append((name, f"it has no CIDR block of {' and '.join(missing)}"))
        else:
            chosen.append(name)
    return Choice(tuple(chosen), tuple(rejected))
