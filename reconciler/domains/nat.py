"""NAT and marks: the one nftables table, as values.

Static rules, dynamic sets: the number of rules depends on ENIs and families, never on pods or
CIDRs. A rule is the text of its expressions in libnftables' JSON, in the very form in which the
kernel lists it, so that observed and desired rules compare as values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, ClassVar

from reconciler.core.datapath import (
    FAMILIES,
    MARK_MASK,
    PRIMARY_MARK,
    TABLE,
    Family,
    IpAddress,
    IpNetwork,
)
from reconciler.core.inputs import Inputs
from reconciler.core.plan import Change, Key, Plan, Verb, compare, merge
from reconciler.errors import NotReadyError

Expression = dict[str, Any]

NODE_PORT_PRIORITY = -150
"""``mangle``: before DNAT, so that "local address" still means the address the client used."""

SNAT_MARK_PRIORITY = -90
"""After DNAT (-100), so that a service address has become the address of its endpoint."""

ROUTE_MARK_PRIORITY = -89
"""Right after; a chain of type nat sees only a connection's first packet, this one sees all."""

SOURCE_NAT_PRIORITY = 100
"""``srcnat``, in postrouting."""


@dataclass(frozen=True, slots=True)
class NftTable:
    """Our table; everything else lives in it.

    Attributes:
        flags: ours has none; a dormant table does nothing.
        readable: false if it holds something that we never write.
    """

    kind: ClassVar[str] = "nft-table"
    name: str = TABLE
    flags: tuple[str, ...] = ()
    readable: bool = True

    @property
    def key(self) -> Key:
        """The name."""
        return (self.name,)

    def command(self, verb: Verb) -> str:
        """The ``nft`` command."""
        return f"nft {'delete' if verb is Verb.DELETE else 'add'} table inet {self.name}"


@dataclass(frozen=True, slots=True)
class NftChain:
    """A chain and all its rules, in order: a rule has no identity but its place.

    Attributes:
        hook: "" for a chain that is only jumped to; then type and priority mean nothing.
        policy: "" is accept.
        rules: expressions of each rule as canonical JSON.
    """

    kind: ClassVar[str] = "nft-chain"
    name: str
    rules: tuple[str, ...] = ()
    type: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = ""

    @property
    def key(self) -> Key:
        """The name."""
        return (self.name,)

    @property
    def place(self) -> tuple[str, str, int, str]:
        """Where the kernel calls it, and what becomes of what no rule decides."""
        return (self.type, self.hook, self.priority, self.policy or "accept")

    def command(self, verb: Verb) -> str:
        """The ``nft`` command."""
        place = f"inet {TABLE} {self.name}"
        if verb is Verb.DELETE:
            return f"nft delete chain {place}"
        if verb is Verb.UPDATE:
            return f"nft flush chain {place}, then {len(self.rules)} rules"
        hook = f" {{ type {self.type} hook {self.hook} priority {self.priority}; }}"
        return f"nft add chain {place}{hook if self.hook else ''}, then {len(self.rules)} rules"


@dataclass(frozen=True, slots=True)
class NftSet:
    """A set, or with ``verdicts`` a verdict map.

    Attributes:
        interval: elements are ranges. Without auto-merge: the planner coalesces, so that the
            kernel holds exactly the elements that were written.
    """

    kind: ClassVar[str] = "nft-set"
    name: str
    type: str
    interval: bool = False
    verdicts: bool = False

    @property
    def key(self) -> Key:
        """The name."""
        return (self.name,)

    def command(self, verb: Verb) -> str:
        """The ``nft`` command."""
        noun = "map" if self.verdicts else "set"
        if verb is Verb.DELETE:
            return f"nft delete {noun} inet {TABLE} {self.name}"
        values = " : verdict" if self.verdicts else ""
        flags = " flags interval;" if self.interval else ""
        return f"nft add {noun} inet {TABLE} {self.name} {{ type {self.type}{values};{flags} }}"


@dataclass(frozen=True, slots=True)
class NftElement:
    """One element: an address, or a range of them, with its verdict if the set is a map.

    Attributes:
        goto: the chain a verdict map sends matching packets to; "" in a plain set.
    """

    kind: ClassVar[str] = "nft-element"
    set: str
    first: IpAddress
    last: IpAddress
    goto: str = ""

    @property
    def key(self) -> Key:
        """Set and range."""
        return (self.set, self.first.version, int(self.first), int(self.last))

    @property
    def text(self) -> str:
        """The range as an operator writes it: an address, a CIDR, or first-last."""
        if self.first == self.last:
            return str(self.first)
        cidr = as_network(self.first, self.last)
        return str(cidr) if cidr else f"{self.first}-{self.last}"

    def command(self, verb: Verb) -> str:
        """The ``nft`` command."""
        word = "delete" if verb is Verb.DELETE else "add"
        verdict = f" : goto {self.goto}" if self.goto else ""
        return f"nft {word} element inet {TABLE} {self.set} {{ {self.text}{verdict} }}"


NftObject = NftTable | NftChain | NftSet | NftElement


def desire(inputs: Inputs) -> frozenset[NftObject]:
    """Compile the table.

    Raises:
        NotReadyError: the primary ENI's link is not known yet.
    """
    primary = next((e for e in inputs.enis if e.mac == inputs.node.primary_mac), None)
    link = inputs.links.get(inputs.node.primary_mac)
    if primary is None or link is None:
        raise NotReadyError(f"no link has the primary ENI's MAC {inputs.node.primary_mac}")
    families = [FAMILIES[name] for name in inputs.document.families]
    snat = inputs.document.snat.mode == "node"
    # Chains of type nat stay, with or without rules: when the last one of a network namespace
    # goes, the kernel ends the translation of established connections too.
    objects: set[NftObject] = {
        NftTable(),
        _node_port(link),
        _route_mark(families),
        _snat_mark(families if snat else []),
        _source_nat(families if snat else [], link, primary.primary),
    }
    for index in sorted({0} | {e.device_index for e, _ in inputs.pod_enis if e.device_index}):
        objects.add(_mark_chain(index))
    for family in families:
        objects |= _family_sets(family)
        objects |= _elements(inputs, family, with_exclusions=snat)
    return frozenset(objects)


def plan(desired: Iterable[NftObject], observed: Iterable[NftObject]) -> Plan:
    """Compare; what cannot be changed in place takes a new table, in the same transaction.

    Everything in the table is ours: the table is. A set's type and a chain's hook are fixed for
    life, and a set that rules use cannot be deleted, so a wrong one means starting over.
    """
    desired, observed = list(desired), list(observed)
    have = {(o.kind, o.key): o for o in observed}
    for want in desired:
        existing = have.get((want.kind, want.key))
        if existing is not None and _shape(existing) != _shape(want):
            remove = Change(Verb.DELETE, NftTable(), f"{want.key[0]} has another shape")
            return Plan((remove,)) + _compare(desired, ())
    return _compare(desired, observed)


def _compare(desired: Iterable[NftObject], observed: Iterable[NftObject]) -> Plan:
    """Compare kind by kind, in the order in which an operator would type it."""
    desired, observed = list(desired), list(observed)
    kinds = (NftTable, NftSet, NftChain, NftElement)
    parts = {
        kind.kind: compare(
            [o for o in desired if isinstance(o, kind)],
            [o for o in observed if isinstance(o, kind)],
        )
        for kind in kinds
    }
    return merge(parts)


def coalesce(networks: Iterable[IpNetwork]) -> list[tuple[IpAddress, IpAddress]]:
    """Merge networks of one family into disjoint ranges with gaps between them, ascending."""
    ranges: list[tuple[IpAddress, IpAddress]] = []
    for network in sorted(networks, key=lambda n: (int(n.network_address), n.prefixlen)):
        first, last = network.network_address, network.broadcast_address
        if ranges and int(first) <= int(ranges[-1][1]) + 1:
            if int(last) > int(ranges[-1][1]):
                ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((first, last))
    return ranges


def as_network(first: IpAddress, last: IpAddress) -> IpNetwork | None:
    """Return the one network that is exactly this range, or None."""
    size = int(last) - int(first) + 1
    if size & (size - 1) or int(first) % size:
        return None
    return ip_network((first, first.max_prefixlen - size.bit_length() + 1))


def canonical(expressions: list[Expression]) -> str:
    """Return the one text of a rule."""
    return json.dumps(expressions, sort_keys=True, separators=(",", ":"))


def _shape(obj: NftObject) -> object:
    match obj:
        case NftChain():
            return obj.place
        case NftSet() | NftTable():
            return obj
        case NftElement():
            return None


def _set_names(family: Family) -> tuple[str, str, str]:
    return f"no_snat_{family.name}", f"pods_{family.name}", f"pod_eni_{family.name}"


def _family_sets(family: Family) -> set[NftObject]:
    no_snat, pods, pod_eni = _set_names(family)
    return {
        NftSet(no_snat, family.nft_type, interval=True),
        NftSet(pods, family.nft_type),
        NftSet(pod_eni, family.nft_type, verdicts=True),
    }


def _elements(inputs: Inputs, family: Family, *, with_exclusions: bool) -> set[NftObject]:
    no_snat, pods, pod_eni = _set_names(family)
    elements: set[NftObject] = set()
    if with_exclusions:
        cidrs = (*inputs.node.vpc_cidrs, *inputs.document.snat.exclude_cidrs)
        for first, last in coalesce(c for c in cidrs if c.version == family.version):
            elements.add(NftElement(no_snat, first, last))
    # A verdict may only name a chain that exists; a pod whose ENI is gone has no way out.
    primary = {e.eni_id: 0 for e in inputs.enis if e.device_index == 0}
    devices = {"": 0} | primary | {e.eni_id: e.device_index or 0 for e, _ in inputs.pod_enis}
    for a in inputs.placed:
        if a.address.version != family.version:
            continue
        elements.add(NftElement(pods, a.address, a.address))
        if a.eni_id in devices:
            chain = _chain_name(devices[a.eni_id])
            elements.add(NftElement(pod_eni, a.address, a.address, chain))
    return elements


def _chain_name(device_index: int) -> str:
    return f"eni_{device_index}"


def _mark_chain(device_index: int) -> NftChain:
    """Set our byte of the packet mark; other owners' bits stay (kube-proxy has marked by now)."""
    mark = device_index or PRIMARY_MARK
    keep = {"&": [{"meta": {"key": "mark"}}, ~MARK_MASK & 0xFFFFFFFF]}
    rule = [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"|": [keep, mark]}}}]
    return NftChain(_chain_name(device_index), (canonical(rule),))


def _node_port(link: str) -> NftChain:
    """Mark connections that come in by the primary ENI for an address of the host."""
    rule = [
        _match({"meta": {"key": "iifname"}}, link),
        _match({"fib": {"result": "type", "flags": ["daddr", "iif"]}}, "local"),
        _match({"ct": {"key": "state"}}, "new", op="in"),
        _mark_connection(),
    ]
    return NftChain("node_port", (canonical(rule),), "filter", "prerouting", NODE_PORT_PRIORITY)


def _snat_mark(families: list[Family]) -> NftChain:
    """Mark connections that a pod opens to somewhere its own address cannot be answered from."""
    rules = tuple(canonical([*_leaves_vpc(f), _mark_connection()]) for f in families)
    return NftChain("snat_mark", rules, "nat", "prerouting", SNAT_MARK_PRIORITY)


def _route_mark(families: list[Family]) -> NftChain:
    """Choose the ENI: the connection's, if it is bound to the primary, else the pod's."""
    bound = {"&": [{"ct": {"key": "mark"}}, MARK_MASK]}
    rules = [
        [_match(bound, PRIMARY_MARK), {"goto": {"target": _chain_name(0)}}],
        *(
            [{"vmap": {"key": _payload(f, "saddr"), "data": f"@{_set_names(f)[2]}"}}]
            for f in families
        ),
    ]
    return NftChain(
        "route_mark", tuple(map(canonical, rules)), "filter", "prerouting", ROUTE_MARK_PRIORITY
    )


def _source_nat(families: list[Family], link: str, address: IpAddress) -> NftChain:
    """Give what leaves the VPC the node's address, with a port nobody can guess or collide on."""
    rules = tuple(
        canonical(
            [
                _match({"meta": {"key": "oifname"}}, link),
                *_leaves_vpc(f),
                {"snat": {"family": f.nft, "addr": str(address), "flags": "fully-random"}},
            ]
        )
        for f in families
        if f.version == address.version
    )
    return NftChain("source_nat", rules, "nat", "postrouting", SOURCE_NAT_PRIORITY)


def _leaves_vpc(family: Family) -> list[Expression]:
    no_snat, pods, _ = _set_names(family)
    return [
        _match(_payload(family, "saddr"), f"@{pods}"),
        _match(_payload(family, "daddr"), f"@{no_snat}", op="!="),
    ]


def _mark_connection() -> Expression:
    mark = {"ct": {"key": "mark"}}
    return {"mangle": {"key": mark, "value": {"|": [mark, PRIMARY_MARK]}}}


def _match(left: Expression, right: Any, op: str = "==") -> Expression:
    return {"match": {"op": op, "left": left, "right": right}}


def _payload(family: Family, field: str) -> Expression:
    return {"payload": {"protocol": family.nft, "field": field}}
