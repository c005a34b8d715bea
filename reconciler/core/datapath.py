"""The numbers and names the datapath is made of: a constant count, whatever the pods and CIDRs.

===========  =====================================  ==========================================
priority     rule                                   why
===========  =====================================  ==========================================
512          ``lookup 512``                         /32 routes to local pods; no match falls
                                                    through
1024         ``fwmark PRIMARY lookup main``         what must use the primary ENI
1536 + k     ``fwmark k lookup 1536+k``             what must use ENI *k*
32765        ``from <ENI k> lookup 1536+k``         the host's own traffic from that ENI
===========  =====================================  ==========================================

*k* is the ENI's device index, so a table and its rule carry the same number and neither depends
on the order in which ENIs were found. What must use which ENI is for ``reconciler.domains.nat``.

Priorities 512, 1024, 1536 and 32765 are the stock plugin's (amazon-vpc-cni-k8s
``pkg/networkutils/network.go``), so that operators find them where they look; the tables are our
own, because the stock plugin puts pod routes into ``main``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

PROTOCOL = 201
"""Our stamp on routes (``rtm_protocol``) and rules (``FRA_PROTOCOL``, Linux 4.17).

Ours by choice: above 186-192, which iproute2's ``rt_protos`` gives to routing daemons.
"""

LOCAL_TABLE = 255
"""The kernel's table of the host's own addresses (``rt_tables``); its first rule leads there."""

MAIN_TABLE = 254  # the kernel's main table (``rt_tables``)

PODS_TABLE = 512  # holds one route per local pod; the rule that looks it up has the same number

PODS_PRIORITY = 512
PRIMARY_PRIORITY = 1024
ENI_PRIORITY = 1536
HOST_PRIORITY = 32765
"""Just before ``main`` (32766): only what carries an ENI's own address needs it."""

PRIMARY_MARK = 0x80
"""Bit of the primary ENI. With the default mask it is the stock plugin's connmark, with the same
meaning, so that connections outlive the move from one to the other."""

MAX_DEVICE_INDEX = 0x7F  # ENI *k* is marked with *k*, which must not reach ``PRIMARY_MARK``


ENI_GROUP, POD_GROUP = 0x4E4E, 0x4E50
"""Groups of ENIs' links and of pods', "NN" and "NP": the ruleset knows by one number what a packet
came by."""


@dataclass(frozen=True, slots=True)
class Marks:
    """How ENIs are written into packet and connection marks.

    All other bits are left as they are: kube-proxy uses 0x4000, Calico 0xffff0000, Cilium 0x0f00.
    """

    mask: int = 0xFF  # the eight adjacent bits that are ours

    def of(self, device_index: int) -> int:
        """Return the mark of an ENI."""
        return (device_index or PRIMARY_MARK) * (self.mask & -self.mask)

    @property
    def others(self) -> int:
        """The bits that are not ours."""
        return ~self.mask & 0xFFFFFFFF


TABLE = "node_network"  # the one nftables table, family ``inet``

FLOWS = "node_network_flows"
"""The table of the fast path, family ``inet``: one of its own, so that what goes wrong with links
that come and go, or with a kernel without flowtables, goes wrong in it alone."""

ALIAS = "node-network"  # start of the alias of every link we made; the rest names its attachment


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between address families; nothing else in the project knows one by name."""

    name: str
    version: int
    nft: str  # its name in nftables expressions
    nft_type: str
    # link-local next hop that every pod uses; the host never owns it, the pod has a permanent
    # neighbour entry for it
    gateway: IpAddress
    # the kernel wants a route to that next hop before a route may name it. A link-local IPv6 one
    # is on every link by itself.
    gateway_route: bool
    # what the kernel makes of "no metric" (IPv6: IP6_RT_PRIO_USER, linux/ipv6_route.h)
    metric: int
    # its addresses mean nothing beyond the VPC and its peers, so that others must see the node's
    private: bool
    everything: IpNetwork  # the default route's destination
    # the VPC's, in every subnet; None if it is the subnet's base plus one (VPC user guide, "Subnet
    # sizing")
    router: IpAddress | None
    # EC2 gives addresses out one by one, or sixteen at a time; otherwise an ENI has one prefix
    # that no node can use up
    counted: bool
    # what pods have addresses of that are good for nothing but egress. The ranges of the stock
    # plugin's egress-cni (``cmd/aws-vpc-cni/main.go``).
    node_local: IpNetwork


FAMILIES = {
    "ipv4": Family(
        "ipv4",
        4,
        "ip",
        "ipv4_addr",
        gateway=ip_address("169.254.1.1"),
        gateway_route=True,
        metric=0,
        private=True,
        everything=ip_network("0.0.0.0/0"),
        router=None,
        counted=True,
        node_local=ip_network("169.254.172.0/22"),
    ),
    "ipv6": Family(
        "ipv6",
        6,
        "ip6",
        "ipv6_addr",
        gateway=ip_address("fe80::1"),
        gateway_route=False,
        metric=1024,
        private=False,
        everything=ip_network("::/0"),
        router=ip_address("fe80:ec2::1"),
        counted=False,
        node_local=ip_network("fd00::ac:0/118"),
    ),
}
"""By name. 169.254.1.1 is the stock plugin's gateway as well."""


INSTANCE_METADATA = {
    "ipv4": ip_address("169.254.169.254"),
    "ipv6": ip_address("fd00:ec2::254"),
}
"""By family (EC2 user guide, "Access instance metadata")."""

PRIVATE = (
    *map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")),  # RFC 1918
    *map(ip_network, ("100.64.0.0/10", "169.254.0.0/16")),  # RFC 6598, RFC 3927
)
"""What no internet gateway leads to."""

PREFIX_BITS = 80  # length of a delegated IPv6 prefix (EC2 user guide, "Prefix delegation")


def family_of(value: IpAddress | IpNetwork) -> Family:
    """Return the family of an address or network."""
    return FAMILIES["ipv4" if value.version == 4 else "ipv6"]


def is_node_local(address: IpAddress) -> bool:
    """Whether an address is no address of the VPC, but one for egress from this node alone."""
    return address in family_of(address).node_local


def is_counted(address: IpAddress) -> bool:
    """Whether the pool holds it in stock: one of the VPC's, of a family that can run out."""
    return family_of(address).counted and not is_node_local(address)


@lru_cache(4096)
def host_network(address: IpAddress) -> IpNetwork:
    """Return the network that holds just this address: /32 or /128."""
    return ip_network((address, address.max_prefixlen))


def unit_of(address: IpAddress) -> IpNetwork:
    """Return what EC2 gave an address with, if nothing more is known: itself, or its prefix."""
    network = host_network(address)
    if family_of(address).counted:
        return network
    return network.supernet(new_prefix=PREFIX_BITS)


def eni_table(device_index: int) -> int:
    """Return the route table of an ENI; the primary's routes are in ``main``."""
    return ENI_PRIORITY + device_index if device_index else MAIN_TABLE


MAC_STAMP = "02:4e:4e"
"""Start of the MAC of every link end we make: locally administered, unicast (IEEE 802: of the
first octet the second-lowest bit is set, the lowest clear), and "NN"."""


@lru_cache(1536)  # both ends of as many pods as a node has, and few that are gone
def stable_mac(*parts: str) -> str:
    """Return the MAC that the same parts always get, with our stamp.

    Explicit, because udev rewrites MACs that the kernel chose (``MACAddressPolicy=persistent``),
    and the pod's permanent neighbour entry would be wrong.
    """
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return ":".join([MAC_STAMP, *(f"{octet:02x}" for octet in digest[:3])])
