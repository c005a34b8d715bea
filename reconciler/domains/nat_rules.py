"""The rules of our nftables table, as expressions in libnftables' JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.core.datapath import FAMILIES, Family, Marks
from reconciler.core.facts import Eni

Expression = dict[str, Any]

Rules = list[list[Expression]]

CONNECTION_MARK: Expression = {"ct": {"key": "mark"}}

LATER_PACKETS: list[Expression] = [
    {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "confirmed"}},
    {"return": None},
]
"""Leave a chain that is for first packets: conntrack confirms a connection with its first one."""


@dataclass(frozen=True, slots=True)
class Sets:
    """Names of one family's sets.

    ``no_snat``: destinations that see pods' own addresses. ``pod_eni``: verdict map from a pod's
    address to the chain of its ENI. ``by_main``: destinations that the main table routes.
    ``held``: addresses that EC2 has assigned to this node's ENIs for pods, whether a pod has them
    or not. ``guarded``: pods' links, each with an address that may come from there.
    ``no_metadata``: addresses of pods that are refused instance metadata. ``group_mark``,
    ``group_nat``: verdict maps from an address of a pod group with an SNAT policy of its own to
    the chains of that policy.
    """

    no_snat: str
    pods: str
    pod_eni: str
    by_main: str
    held: str
    guarded: str
    no_metadata: str
    group_mark: str
    group_nat: str

    @property
    def of_ranges(self) -> tuple[str, ...]:
        """Those whose elements are ranges."""
        return (self.no_snat, self.by_main, self.held)


NOUNS = (
    *("no_snat", "pods", "pod_eni", "by_main", "held"),
    *("guarded", "no_metadata", "group_mark", "group_nat"),
)

SETS = {name: Sets(*(f"{noun}_{name}" for noun in NOUNS)) for name in FAMILIES}
"""By family."""

LINKS = "links"
"""The verdict map from a link to the chain for what comes in by it."""


def sets_of(family: Family) -> Sets:
    """Name a family's sets."""
    return SETS[family.name]


def no_snat_of(family: Family, group: str) -> str:
    """Name the set of destinations that see a group's own addresses; "" is that of no group."""
    name = sets_of(family).no_snat
    return f"{name}_{group}" if group else name


def is_of_ranges(name: str) -> bool:
    """Whether a set's elements are ranges, by its name."""
    return any(name in s.of_ranges or name.startswith(f"{s.no_snat}_") for s in SETS.values())


def chain_of(device_index: int) -> str:
    """Name the chain that sends a packet by an ENI."""
    return f"eni_{device_index}"


def texts(rules: Rules) -> tuple[str, ...]:
    """Return the one text of each rule."""
    return tuple(json.dumps(r, sort_keys=True, separators=(",", ":")) for r in rules)


def eni(device_index: int, marks: Marks) -> Rules:
    """Send a packet by an ENI."""
    return [[_set_mark({"meta": {"key": "mark"}}, device_index, marks)]]


def arrival(links: Mapping[int, str], marks: Marks) -> Rules:
    """Bind connections to an address of the host to the ENI by which they come in.

    NodePort and hostPort: what answers them is a pod, whose own ENI may be another one; the VPC
    drops an answer that leaves by an ENI without the address it carries.
    """
    return [
        LATER_PACKETS,
        *(
            [
                match({"meta": {"key": "iifname"}}, link),
                match({"fib": {"result": "type", "flags": ["daddr", "iif"]}}, "local"),
                _set_mark(CONNECTION_MARK, index, marks),
            ]
            for index, link in sorted(links.items())
        ),
    ]


def snat_mark(families: Sequence[Family], marks: Marks, grouped: Sequence[Family] = ()) -> Rules:
    """Bind connections that a pod opens to somewhere its own address cannot be answered from.

    By their first packet, which is the one that conntrack has not confirmed yet. Not by a chain of
    type nat, which sees the first packet as well: once kube-proxy has translated it, the kernel
    asks no other chain of that type (nf_nat_inet_fn), and a service whose endpoint is beyond the
    VPC would be out of reach from secondary ENIs.

    ``grouped``: families in which pod groups have policies of their own.
    """
    by_group = [[_by_source(f, sets_of(f).group_mark)] for f in grouped]
    marked = [[*_leaves_vpc(f), _set_mark(CONNECTION_MARK, 0, marks)] for f in families]
    return [LATER_PACKETS, *by_group, *marked]


def mark_outside(family: Family, no_snat: str, marks: Marks) -> list[Expression]:
    """Bind connections to the primary ENI, but for those to a set of destinations."""
    return [_outside(family, no_snat), _set_mark(CONNECTION_MARK, 0, marks)]


def route_mark(families: Sequence[Family], devices: Sequence[int], marks: Marks) -> Rules:
    """Choose the ENI: the one a connection is bound to, else the pod's own.

    Most connections are not bound, so they are decided first, by one lookup, and are not asked
    about each ENI.
    """
    bound = {"&": [CONNECTION_MARK, marks.mask]}
    by_main = [[match(payload(f, "daddr"), f"@{sets_of(f).by_main}"), _goto(0)] for f in families]
    by_pod = [
        [
            match(bound, 0),
            _by_source(f, sets_of(f).pod_eni),
        ]
        for f in families
    ]
    by_connection = [[match(bound, marks.of(index)), _goto(index)] for index in devices]
    return [*by_main, *by_pod, [match(bound, 0), {"return": None}], *by_connection]


def source_nat(
    families: Sequence[Family],
    link: str,
    primary: Eni,
    local: Iterable[str],
    ports: str,
    grouped: Sequence[Family] = (),
) -> Rules:
    """Give packets that leave the VPC the node's address.

    Those from addresses that are good on this node only, too, wherever they go. ``grouped``: as of
    ``snat_mark``.
    """
    chosen = [(f, _leaves_vpc(f)) for f in families]
    chosen += [(FAMILIES[name], [_is_node_local(FAMILIES[name])]) for name in local]
    by_primary = match({"meta": {"key": "oifname"}}, link)
    by_group = [[by_primary, _by_source(f, sets_of(f).group_nat)] for f in grouped]
    return [
        *by_group,
        *_translate([(f, [by_primary, *which]) for f, which in chosen], primary, ports),
    ]


def translate_outside(families: Sequence[Family], group: str, primary: Eni, ports: str) -> Rules:
    """Give a group's packets that leave by the primary ENI the node's address, by its policy."""
    chosen = [(f, [_outside(f, no_snat_of(f, group))]) for f in families]
    return _translate(chosen, primary, ports)


def _translate(
    chosen: Iterable[tuple[Family, list[Expression]]], primary: Eni, ports: str
) -> Rules:
    flags = {} if ports == "sequential" else {"flags": ports}
    return [
        [*which, {"snat": {"family": f.nft, "addr": str(address)} | flags}]
        for f, which in chosen
        if (address := primary.host_address(f.version)) is not None
    ]


HELD = "held"
"""The chain for packets to addresses that this node holds for pods."""

REFUSE = "refuse"
"""The chain that answers a packet by saying that no pod is there."""


def to_held(families: Sequence[Family]) -> Rules:
    """Look at first packets to addresses that this node holds for pods.

    A packet that is refused confirms nothing, so its connection has no second one. Connections
    that were open when their pod ended are ended in conntrack (``targets.conntrack``), and what
    comes then is a first packet again. All others cost one look at their connection.
    """
    to = [
        [match(payload(f, "daddr"), f"@{sets_of(f).held}"), {"goto": {"target": HELD}}]
        for f in families
    ]
    return [LATER_PACKETS, *to]


def held(families: Sequence[Family], links: Iterable[str]) -> Rules:
    """Refuse those that would leave by an ENI: EC2 would only bring them back.

    A packet to a pod, of whichever plugin, leaves by that pod's link, and one to the host itself
    is not forwarded. So this depends on no record. Pods that are known are asked about first
    because nearly all packets are theirs: one lookup, however many ENIs there are.
    """
    known = [
        [match(payload(f, "daddr"), f"@{sets_of(f).pods}"), {"return": None}] for f in families
    ]
    leaving = [
        [match({"meta": {"key": "oifname"}}, link), {"goto": {"target": REFUSE}}]
        for link in sorted(links)
    ]
    return [*known, *leaving]


def refuse(links: Iterable[str]) -> Rules:
    """Say that no pod is there, in words by which a client gives up at once.

    Port unreachable: TCP that is connecting and UDP that is connected take it for the end, where
    host unreachable is only a hint (RFC 1122, 4.2.3.9; icmp_err_convert). To a pod of this node
    and the host itself TCP's own reset, which also ends connections that are open, is not limited
    in rate, and which conntrack translates back if a service was asked for: an ICMP error of a
    connection's first packet it does not know. Not to what came in by an ENI: a reset has the
    gone pod's address as its source, and the VPC drops it unless it leaves by that one's ENI.
    """
    unreachable = {"reject": {"type": "icmpx", "expr": "port-unreachable"}}
    reset = {"reject": {"type": "tcp reset"}}
    return [
        *([match({"meta": {"key": "iifname"}}, link), unreachable] for link in sorted(links)),
        [match({"meta": {"key": "l4proto"}}, "tcp"), reset],
        [unreachable],
    ]


def _is_node_local(family: Family) -> Expression:
    network = family.node_local
    prefix = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
    return match(payload(family, "saddr"), prefix)


def _leaves_vpc(family: Family) -> list[Expression]:
    return [
        match(payload(family, "saddr"), f"@{sets_of(family).pods}"),
        _outside(family, sets_of(family).no_snat),
    ]


def _outside(family: Family, no_snat: str) -> Expression:
    return match(payload(family, "daddr"), f"@{no_snat}", op="!=")


def _by_source(family: Family, verdicts: str) -> Expression:
    return {"vmap": {"key": payload(family, "saddr"), "data": f"@{verdicts}"}}


def _set_mark(mark: Expression, device_index: int, marks: Marks) -> Expression:
    """Write an ENI into our bits of a mark; other owners' bits stay."""
    value = {"|": [{"&": [mark, marks.others]}, marks.of(device_index)]}
    return {"mangle": {"key": mark, "value": value}}


def match(left: Expression, right: Any, op: str = "==") -> Expression:
    """Compare what is on the left with a value, or look for it in a set."""
    return {"match": {"op": op, "left": left, "right": right}}


def payload(family: Family, field: str) -> Expression:
    """Name a field of the packet's header."""
    return {"payload": {"protocol": family.nft, "field": field}}


def _goto(device_index: int) -> Expression:
    return {"goto": {"target": chain_of(device_index)}}
