"""What amazon-vpc-cni-k8s, the stock plugin, leaves on a node, as values.

Its objects carry no stamp. Each is recognised by the exact shape in which that plugin makes it;
an object that differs in anything is another owner's. Sources are files of amazon-vpc-cni-k8s
v1.23.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.core.attachment import AttachmentKey
from reconciler.core.datapath import MAIN_TABLE, IpAddress, IpNetwork
from reconciler.engine.plan import Key, Verb

OWNER = "amazon-vpc-cni"  # what the document calls it

MARK = 0x80
"""Bit of its packet and connection marks (``pkg/networkutils/network.go``, defaultConnmark)."""

TO_POD, FWMARK, SERVICE_CIDR, FROM_POD, FROM_ENI = 512, 1024, 1535, 1536, 32765
"""Priorities of its rules. Source as above."""

PROTOCOLS = frozenset({0, 2, 3})
"""Of its rules and routes: it names none, which each release of its netlink library and of the
kernel has filled in differently (unspec, kernel, boot)."""

ENI_TABLES = range(2, 102)
"""Of ENI *k* the table is *k* + 1; EC2's device indices end at 100
(``pkg/networkutils/helper.go``)."""

VETH = re.compile(r"eni[0-9a-f]{11}")
"""The host end of a pod's link, with the prefix that is its default (``names.go``)."""

CHAIN = re.compile(r"AWS-(SNAT|CONNMARK)-CHAIN-[0-9]+")
"""Its chains in iptables (``network.go``, ``iptables_connmark.go``)."""

SIGN = "AWS"
"""Part of the name of each of its chains, so of the rules that jump there, and of its comments."""

CONNMARK_COMMENTS = {"nat": {"AWS, CONNMARK"}, "mangle": {"AWS, primary ENI"}}
"""By table, comments of the CONNMARK rules that it puts into PREROUTING itself."""

NFT_TABLE = "aws-cni"  # its nftables table, family ip (``nftables_connmark.go``)


@dataclass(frozen=True, slots=True)
class StockRule:
    """A policy rule that looks a table up; ``extra`` is what no rule of the stock plugin's has."""

    kind: ClassVar[str] = "stock-rule"
    priority: int
    table: int
    destination: IpNetwork | None = None
    source: IpNetwork | None = None
    mark: int | None = None
    mask: int = 0
    protocol: int = 0
    extra: str = ""

    @property
    def key(self) -> Key:
        mark = -1 if self.mark is None else self.mark
        ends = (_number(self.destination), _number(self.source))
        return (self.priority, *ends, self.table, mark, self.mask, self.protocol, self.extra)

    def command(self, verb: Verb) -> str:
        word = "delete" if verb is Verb.DELETE else "add"
        source = f" from {self.source}" if self.source else ""
        destination = f" to {self.destination}" if self.destination else ""
        mark = "" if self.mark is None else f" fwmark {self.mark:#x}/{self.mask:#x}"
        table = "main" if self.table == MAIN_TABLE else self.table
        return (
            f"ip rule {word} priority {self.priority}{source}{destination}{mark} lookup {table} "
            f"protocol {self.protocol}"
        )


@dataclass(frozen=True, slots=True)
class StockRoute:
    """A unicast route of the host with an unspecific protocol."""

    kind: ClassVar[str] = "stock-route"
    table: int
    destination: IpNetwork
    device: str
    gateway: IpAddress | None = None
    metric: int = 0
    protocol: int = 3

    @property
    def key(self) -> Key:
        d = self.destination
        return (self.table, -d.prefixlen, int(d.network_address), self.metric, self.device)

    def command(self, verb: Verb) -> str:
        word = "delete" if verb is Verb.DELETE else "replace"
        via = f" via {self.gateway}" if self.gateway else ""
        table = "" if self.table == MAIN_TABLE else f" table {self.table}"
        return f"ip route {word} {self.destination}{via} dev {self.device}{table}"


@dataclass(frozen=True, slots=True)
class IptablesRule:
    """One rule in a chain that is not the stock plugin's own."""

    kind: ClassVar[str] = "iptables-rule"
    backend: str  # "nft" or "legacy", which do not see each other
    table: str
    chain: str
    text: str  # as ``iptables-save`` writes it, behind the chain's name
    copy: int = 0  # which one it is of several that are the same

    @property
    def key(self) -> Key:
        return (self.backend, self.table, self.chain, self.text, self.copy)

    def command(self, verb: Verb) -> str:
        word = "-D" if verb is Verb.DELETE else "-A"
        return f"iptables-{self.backend} -t {self.table} {word} {self.chain} {self.text}"


@dataclass(frozen=True, slots=True)
class IptablesChain:
    """A chain of the stock plugin's own, with all its rules."""

    kind: ClassVar[str] = "iptables-chain"
    backend: str
    table: str
    name: str

    @property
    def key(self) -> Key:
        return (self.backend, self.table, self.name)

    def command(self, verb: Verb) -> str:
        program = f"iptables-{self.backend} -t {self.table}"
        if verb is Verb.DELETE:
            return f"{program} -F {self.name} && {program} -X {self.name}"
        return f"{program} -N {self.name}"


@dataclass(frozen=True, slots=True)
class StockTable:
    """The stock plugin's nftables table."""

    kind: ClassVar[str] = "nft-table"
    name: str = NFT_TABLE

    @property
    def key(self) -> Key:
        return ("ip", self.name)

    def command(self, verb: Verb) -> str:
        return f"nft {'delete' if verb is Verb.DELETE else 'add'} table ip {self.name}"


Leftover = StockRule | StockRoute | IptablesRule | IptablesChain | StockTable


@dataclass(frozen=True, slots=True)
class Allocation:
    """One entry of the stock plugin's checkpoint (``pkg/ipamd/datastore/data_store.go``)."""

    key: AttachmentKey
    address: IpAddress
    pod: str


@dataclass(frozen=True, slots=True)
class PodEnd:
    """Where a host link's other end is: in which namespace, and the MACs of both ends."""

    netns: str
    name: str
    host_mac: str
    mac: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """One observation of all that may be the stock plugin's, before it is recognised."""

    rules: tuple[StockRule, ...] = ()  # IPv4 policy rules without our stamp
    routes: tuple[StockRoute, ...] = ()  # IPv4 unicast routes without our stamp
    # lines of ``iptables-save`` by backend and table
    saved: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    # why the tables of some backends could not be read
    unlisted: Mapping[tuple[str, str], str] = field(default_factory=dict)
    tables: frozenset[str] = frozenset()  # names of nftables tables of family ip
    # the checkpoint's, by address
    allocations: Mapping[IpAddress, Allocation] = field(default_factory=dict)
    unread: str = ""  # why the checkpoint says nothing; "" if it was read
    running: bool = False  # its daemon answers on its socket


def _number(network: IpNetwork | None) -> int:
    return -1 if network is None else int(network.network_address) * 64 + network.prefixlen
